"""Say of every tag whether it can be migrated, and if not, exactly why."""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain
from os import cpu_count
from typing import TypeVar

from exporter import dirlayout
from exporter.digest import Digest
from exporter.events import Checked, Hashed, Observer, Started, silent
from exporter.plan import Closure, Selection, blob_problems, candidates, resolve, select
from exporter.reference import ImageName, RepositoryName
from exporter.storage import BlobFile, Storage, TaggedImage, layout
from exporter.verdict import Problem, ProblemError, Verdict

T = TypeVar("T")
R = TypeVar("R")
_AHEAD = 64  # blobs that wait for a thread, so that one large layer holds up nobody


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
        (_checked(tag.name, "", [tag.problem]) for tag in storage.still_unreadable(unreadable)),
    )
    for event in checked:
        summary.images += 1
        summary.verdicts[event.verdict] += 1
        summary.failed += not event.migrates
        observe(event)
    return summary


def _checked(
    name: str,
    digest: str,
    problems: Iterable[Problem],
    whole: tuple[str, ...] = (),
    broken: tuple[str, ...] = (),
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
        broken_platforms=broken,
    )


def _gravity(problem: Problem) -> int:
    return (not problem.verdict.migrates) + (not problem.verdict.exports)


@dataclass(frozen=True, slots=True)
class _Look:
    """What was seen of a digest: what is to be said of it, and the digests its blobs lie under."""

    problems: tuple[Problem, ...]
    stored: tuple[Digest, ...]


class _Reader:
    """Looks at each manifest and blob once, however many tags share it, and hashes a blob once."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._looks: dict[Digest, _Look] = {}
        self._blobs: dict[Digest, tuple[Digest, BlobFile | Problem]] = {}
        self._hashes: dict[Digest, Digest] = {}
        self._wrong: dict[Digest, Problem] = {}

    def canonical(self, digest: Digest, repository: RepositoryName) -> Digest:
        """See `Storage.canonical`."""
        return self._storage.canonical(digest, repository)

    def blob(self, digest: Digest) -> BlobFile:
        """See `Storage.blob`; a file that this user cannot read is as good as missing."""
        seen = self._blobs.get(digest)
        if seen is None:
            seen = self._blobs[digest] = digest, self._look_at(digest)
        if isinstance(seen[1], Problem):
            raise ProblemError(seen[1].verdict, seen[1].path, seen[1].message)
        return seen[1]

    def hash(self, digest: Digest) -> Digest:
        """See `Storage.hash`."""
        if digest not in self._hashes:
            self._hashes[digest] = self._storage.hash(digest)
        return self._hashes[digest]

    def _look_at(self, digest: Digest) -> BlobFile | Problem:
        try:
            found = self._storage.blob(digest)
        except ProblemError as error:
            return error.problem
        if self._storage.is_readable(digest):
            return found
        message = f"the blob {digest} cannot be read by this user"
        return Problem(Verdict.MISSING_BLOB, layout.blob(digest), message)

    def look(self, image: TaggedImage) -> None:
        """Look at everything that an image consists of, without reading its blobs."""
        if image.digest in self._looks:
            return
        repository = image.name.repository
        closure = resolve(image.digest, self._storage.manifest)
        problems = (*closure.problems, *blob_problems(closure, self, repository))
        stored = (self.canonical(blob, repository) for blob in closure.blobs)
        # The very strings of `_blobs`, not equal ones: they are most of what is remembered.
        self._looks[image.digest] = _Look(problems, tuple(self._blobs[blob][0] for blob in stored))

    def hash_all(self, observe: Observer) -> int:
        """Read every blob that was seen once, several at a time; return how many there were."""
        blobs = [name for name, found in self._blobs.values() if not isinstance(found, Problem)]
        observe(Started(verb="hash", images=len(blobs)))
        with ThreadPoolExecutor(cpu_count()) as pool:
            try:
                for digest, problem in _map(pool, self._hash, blobs):
                    if problem is not None:
                        self._wrong[digest] = problem
                    observe(Hashed(digest=digest, right=problem is None))
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return len(blobs)

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
        whole: list[str] = []
        broken: list[str] = []
        if any(not each.verdict.migrates for each in problems):
            if self._storage.has_moved(image):
                message = "the tag has moved, or was deleted, since the scan began"
                problems = [Problem(Verdict.CHANGED_DURING_SCAN, "", message)]
            else:
                for platform, is_whole in self._platforms(image, problems):
                    (whole if is_whole else broken).append(platform)
        return _checked(str(image.name), image.digest, problems, tuple(whole), tuple(broken))

    def _damage(self, blobs: Iterable[Digest]) -> Iterator[Problem]:
        return (self._wrong[digest] for digest in blobs if digest in self._wrong)

    def _platforms(
        self, image: TaggedImage, problems: Iterable[Problem]
    ) -> Iterator[tuple[str, bool]]:
        """Yield the children of a broken index, by platform or digest, and if each is whole."""
        closure = resolve(image.digest, self._storage.manifest)
        if image.digest not in closure.manifests:
            return
        files = {each.path for each in problems if not each.verdict.migrates}
        broken = _broken(closure, files, self._storage, image.name.repository)
        children = closure.manifests[image.digest].children
        for child in dict.fromkeys(children):
            yield child.platform or child.digest, child.digest not in broken


def _broken(
    closure: Closure, files: set[str], storage: Storage, repository: RepositoryName
) -> set[Digest]:
    """Return the manifests that need one of the files, themselves or by what they list."""
    parents: dict[Digest, set[Digest]] = {}
    broken: set[Digest] = set()
    for digest, manifest in closure.manifests.items():
        needs = (digest, *(storage.canonical(b.digest, repository) for b in manifest.blobs()))
        if any(layout.blob(need) in files for need in needs):
            broken.add(digest)
        for child in manifest.children:
            parents.setdefault(child.digest, set()).add(digest)
            if layout.blob(child.digest) in files:
                broken.add(child.digest)
    pending = [*broken]
    while pending:
        new = parents.get(pending.pop(), set()) - broken
        broken |= new
        pending += new
    return broken


def _map(
    pool: ThreadPoolExecutor, function: Callable[[T], R], items: Iterable[T]
) -> Iterator[tuple[T, R]]:
    """Yield each item and its result, in order. `pool.map` would queue a whole registry at once."""
    running: deque[tuple[T, Future[R]]] = deque()
    for item in items:
        running.append((item, pool.submit(function, item)))
        if len(running) > _AHEAD:
            done, result = running.popleft()
            yield done, result.result()
    for done, result in running:
        yield done, result.result()


def _name_problems(name: ImageName) -> Iterator[Problem]:
    try:
        dirlayout.image_directory("", name)
    except ValueError as error:
        yield Problem(Verdict.INVALID_NAME, "", str(error))
