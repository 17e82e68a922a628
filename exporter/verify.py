"""Prove that a destination has what OUT has, digest by digest."""

from collections.abc import Callable, Iterator
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
        observe: Is told about every image, in the order of their names.

    Raises:
        UsageError: OUT holds no images, or none matches.
        DestinationError: The destination cannot be asked at all.
    """
    images = (selection or Selection()).pick(dirlayout.images(out).items(), lambda item: item[0])
    client.ping()
    observe(Started(verb="verify", images=len(images)))
    summary = VerifySummary()
    with ThreadPoolExecutor(jobs) as pool:
        check = partial(_verify, out, destination, client.manifest_digest)
        try:
            for event in pool.map(check, images):
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


def _verify(
    out: str,
    destination: Destination,
    ask: Callable[[RepositoryName, str], Digest | None],
    image: tuple[ImageName, Digest],
) -> Event:
    name, digest = image
    directory = dirlayout.image_directory(out, name)
    failed = partial(Failed, verb="verify", name=str(name))
    closure = resolve(digest, partial(dirlayout.read_manifest, directory, root=digest))
    for problem in closure.problems:
        if problem.verdict.migrates:
            continue
        return failed(error=problem.verdict, message=problem.message)
    try:
        repository = destination.repository(name.repository)
        for reference, expected in _references(name, closure):
            found = ask(repository, reference)
            if found is None:
                message = f"{reference} is not at the destination"
                return failed(error="missing", message=message)
            if found != expected:
                message = f"{reference} is {found} at the destination, not {expected}"
                return failed(error="different", message=message)
    except ValueError as error:
        return failed(error="invalid-name", message=str(error))
    except DestinationError as error:
        kind = "temporary" if isinstance(error, TemporaryDestinationError) else "permanent"
        return failed(error=kind, message=error.message)
    return Verified(
        name=str(name),
        destination=f"{destination.host}/{repository}",
        digest=digest,
        manifests=len(closure.manifests),
    )


def _references(name: ImageName, closure: Closure) -> Iterator[tuple[str, Digest]]:
    """Yield what must be asked for, and the digest that each must have: the tag, then children."""
    yield name.reference, closure.root
    for child in closure.children():
        yield child, child
