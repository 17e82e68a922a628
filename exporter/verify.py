"""Prove that a destination has what OUT has, digest by digest."""

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from exporter import dirlayout
from exporter.digest import Digest
from exporter.distribution import Client
from exporter.errors import DestinationError, TemporaryDestinationError
from exporter.events import Event, Failed, Observer, Started, Verified, silent
from exporter.plan import Closure, Selection, resolve
from exporter.reference import Destination, ImageName, RepositoryName
from exporter.retry import Retry


@dataclass(slots=True, kw_only=True)
class VerifySummary:
    """What a verification found.

    Attributes:
        images: Images whose every manifest is at the destination under the same digest.
        manifests: Digests compared, tags and children.
        failed: Images of which one is missing or different, or that OUT itself lacks.
    """

    images: int = 0
    manifests: int = 0
    failed: int = 0


def verify(
    out: str,
    destination: Destination,
    *,
    client: Client,
    selection: Selection | None = None,
    jobs: int = 8,
    retry: Retry | None = None,
    observe: Observer = silent,
) -> VerifySummary:
    """Compare every tag and every child of an index with what the destination names so.

    Only HEAD requests: Harbor does not count them as pulls.

    Args:
        out: Directory of images; what the export could not build counts as failed.
        destination: Where they should be.
        client: Speaks to its host.
        selection: Which images; all by default.
        jobs: Requests at a time.
        retry: When to ask again for the images that a temporary failure left open; all of them
            together, when the others are done.
        observe: Is told about every image, in the order of their names but for those left open.

    Raises:
        UsageError: OUT holds no images, or none matches.
        DestinationError: The destination cannot be asked at all.
    """
    images = (selection or Selection()).pick(dirlayout.images(out).items(), lambda item: item[0])
    client.ping()
    observe(Started(verb="verify", images=len(images)))
    summary = VerifySummary()
    with ThreadPoolExecutor(jobs) as pool:
        ask = partial(_verify, out, destination, client.manifest_digest)
        try:
            for event in _answers(images, partial(pool.map, ask), retry or Retry()):
                if isinstance(event, Verified):
                    summary.images += 1
                    summary.manifests += event.manifests
                else:
                    summary.failed += 1
                observe(event)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return summary


_Image = tuple[ImageName, Digest]


def _answers(
    images: Sequence[_Image],
    ask: Callable[[Sequence[_Image]], Iterable[Event | DestinationError]],
    retry: Retry,
) -> Iterator[Event]:
    """Yield what becomes of every image; those left open by a failure are asked for at the end."""
    for tries in itertools.count(1):
        left_open: list[_Image] = []
        wait_seconds = 0.0
        for image, answer in zip(images, ask(images), strict=True):
            if not isinstance(answer, DestinationError):
                yield answer
            elif not isinstance(answer, TemporaryDestinationError):
                yield _failed(image[0], "permanent", answer.message)
            elif tries == retry.tries:
                yield _failed(image[0], "temporary", answer.message)
            else:
                left_open.append(image)
                wait_seconds = max(wait_seconds, retry.wait_seconds(tries, answer))
        if not left_open:
            return
        time.sleep(wait_seconds)
        images = left_open


def _verify(
    out: str,
    destination: Destination,
    ask: Callable[[RepositoryName, str], Digest | None],
    image: _Image,
) -> Event | DestinationError:
    name, digest = image
    directory = dirlayout.image_directory(out, name)
    failed = partial(_failed, name)
    closure = resolve(digest, partial(dirlayout.read_manifest, directory, root=digest))
    for problem in closure.problems:
        if problem.verdict.migrates:
            continue
        return failed(problem.verdict, problem.message)
    try:
        repository = destination.repository(name.repository)
        for reference, expected in _references(name, closure):
            found = ask(repository, reference)
            if found is None:
                message = f"{reference} is not at the destination"
                return failed("missing", message)
            if found != expected:
                message = f"{reference} is {found} at the destination, not {expected}"
                return failed("different", message)
    except ValueError as error:
        return failed("invalid-name", str(error))
    except DestinationError as error:
        return error
    return Verified(
        name=str(name),
        destination=f"{destination.host}/{repository}",
        digest=digest,
        manifests=len(closure.manifests),
    )


def _failed(name: ImageName, error: str, message: str) -> Failed:
    return Failed(verb="verify", name=str(name), error=error, message=message)


def _references(name: ImageName, closure: Closure) -> Iterator[tuple[str, Digest]]:
    """Yield what must be asked for, and the digest that each must have: the tag, then children."""
    yield name.reference, closure.root
    for child in closure.children():
        yield child, child
