"""Say of every tag whether it can be migrated, and if not, exactly why."""

from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from os import cpu_count

from exporter import dirlayout
from exporter.digest import Digest
from exporter.events import Checked, Hashed, Observer, Started, silent
from exporter.plan import Selection, blob_problems, candidates, resolve, select
from exporter.reference import ImageName
from exporter.storage import Storage, TaggedImage, layout
from exporter.verdict import Problem, ProblemError, Verdict


@dataclass(slots=True, kw_only=True)
class CheckSummary:
    """What a check found.

    Attributes:
        images: Tags looked at.
        verdicts: How many tags have each verdict, the gravest of each tag counted.
        failed: Tags that cannot be migrated.
        hashed: Blobs read to their end.
    """

    images: int = 0
    verdicts: Counter[str] = field(default_factory=Counter)
    failed: int = 0
    hashed: int = 0


def check(
    storage: Storage,
    *,
    selection: Selection | None = None,
    untagged: bool = False,
    digests: bool = False,
    observe: Observer = silent,
) -> CheckSummary:
    """Tell about every tag what is to be said of it. Nothing is written anywhere.

    Manifests are always read and hashed. Of configs and layers the presence, kind and size are
    looked at; with `digests` each is read once and hashed, several at a time.

    Args:
        storage: The registry.
        selection: Which tags; all by default.
        untagged: Also the manifests that no tag reaches.
        digests: Read every blob.
        observe: Is told `Checked` for every tag, and `Hashed` for every blob that was read.

    Raises:
        UsageError: Nothing matches.
        SourceError: The registry has no tags at all.
    """
    images, unreadable = select(candidates(storage, untagged=untagged), selection or Selection())
    summary = CheckSummary()
    reader = _Reader(storage)
    for image in images:
        reader.look(image)
    if digests:
        summary.hashed = reader.hash_all(observe)
    observe(Started(verb="check", images=len(images) + len(unreadable)))
    checked = chain(
        (reader.verdict(image) for image in images),
        (_checked(tag.name, "", [tag.problem]) for tag in unreadable),
    )
    for event in checked:
        summary.images += 1
        summary.verdicts[event.verdict] += 1
        summary.failed += not event.migrates
        observe(event)
    return summary


def _checked(
    name: str, digest: str, problems: Iterable[Problem], whole: tuple[str, ...] = ()
) -> Checked:
    ordered = sorted(problems, key=_gravity, reverse=True)
    verdict = ordered[0].verdict if ordered else Verdict.OK
    return Checked(
        name=name,
        digest=digest,
        verdict=str(verdict),
        migrates=verdict.migrates,
        findings=tuple(
            {
                "verdict": each.verdict,
                "file": each.path,
                "message": each.message,
                "remedy": each.verdict.remedy,
            }
            for each in ordered
        ),
        whole_platforms=whole,
    )


def _gravity(problem: Problem) -> int:
    return (not problem.verdict.migrates) + (not problem.verdict.exports)


@dataclass(frozen=True, slots=True)
class _Look:
    """What was seen of a digest: what is to be said of it, and the digests its blobs lie under."""

    problems: tuple[Problem, ...]
    stored: tuple[Digest, ...]


class _Reader:
    """Looks at each manifest once, however many tags share it, and hashes each blob once."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._looks: dict[Digest, _Look] = {}
        self._wrong: dict[Digest, Problem] = {}

    def look(self, image: TaggedImage) -> None:
        """Look at everything that an image consists of, without reading its blobs."""
        if image.digest in self._looks:
            return
        repository = image.name.repository
        closure = resolve(image.digest, self._storage.manifest)
        problems = [*closure.problems, *blob_problems(closure, self._storage, repository)]
        stored = tuple(self._storage.canonical(blob, repository) for blob in closure.blobs)
        broken = {each.path for each in problems}
        for digest in stored:
            path = layout.blob(digest)
            if path not in broken and not self._storage.is_readable(digest):
                message = f"the blob {digest} cannot be read by this user"
                problems.append(Problem(Verdict.MISSING_BLOB, path, message))
        self._looks[image.digest] = _Look(tuple(problems), stored)

    def hash_all(self, observe: Observer) -> int:
        """Read every blob that was seen once, several at a time; return how many there were."""
        broken = {problem.path for look in self._looks.values() for problem in look.problems}
        blobs = {digest for look in self._looks.values() for digest in look.stored}
        whole = sorted(digest for digest in blobs if layout.blob(digest) not in broken)
        observe(Started(verb="hash", images=len(whole)))
        with ThreadPoolExecutor(cpu_count()) as pool:
            try:
                for digest, problem in zip(whole, pool.map(self._hash, whole), strict=True):
                    if problem is not None:
                        self._wrong[digest] = problem
                    observe(Hashed(digest=digest, right=problem is None))
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return len(whole)

    def _hash(self, digest: Digest) -> Problem | None:
        try:
            found = self._storage.hash(digest)
        except ProblemError as error:
            return error.problem
        if found == digest:
            return None
        message = f"the blob {digest} is damaged: its content has the digest {found}"
        return Problem(Verdict.WRONG_DIGEST, layout.blob(digest), message)

    def verdict(self, image: TaggedImage) -> Checked:
        """Return what is to be said of an image that was looked at."""
        look = self._looks[image.digest]
        problems = [*look.problems, *self._damage(look.stored), *_name_problems(image.name)]
        whole: tuple[str, ...] = ()
        if any(not each.verdict.migrates for each in problems):
            if self._storage.has_moved(image):
                message = "the tag has moved, or was deleted, since the scan began"
                problems = [Problem(Verdict.CHANGED_DURING_SCAN, "", message)]
            else:
                whole = tuple(self._whole_platforms(image))
        return _checked(str(image.name), image.digest, problems, whole)

    def _damage(self, blobs: Iterable[Digest]) -> Iterator[Problem]:
        return (self._wrong[digest] for digest in blobs if digest in self._wrong)

    def _whole_platforms(self, image: TaggedImage) -> Iterator[str]:
        """Yield the children of a broken index that are whole, by platform or digest."""
        repository = image.name.repository
        with suppress(ProblemError):
            for child in self._storage.manifest(image.digest).children:
                closure = resolve(child.digest, self._storage.manifest)
                stored = [self._storage.canonical(blob, repository) for blob in closure.blobs]
                problems = chain(
                    closure.problems,
                    blob_problems(closure, self._storage, repository),
                    self._damage(stored),
                )
                if all(each.verdict.migrates for each in problems):
                    yield child.platform or child.digest


def _name_problems(name: ImageName) -> Iterator[Problem]:
    try:
        dirlayout.image_directory("", name)
    except ValueError as error:
        yield Problem(Verdict.INVALID_NAME, "", str(error))
