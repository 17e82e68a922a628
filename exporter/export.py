"""Build skopeo `dir:` images in OUT out of hard links to the registry's files."""

import errno
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from exporter import dirlayout, files, link
from exporter.digest import Digest
from exporter.errors import UsageError
from exporter.events import Event, Exported, Failed, Observer, Started, silent
from exporter.plan import Closure, Selection, blob_problems, candidates, resolve, select
from exporter.reference import ImageName, RepositoryName
from exporter.storage import Storage, TaggedImage
from exporter.storage.tree import BlobFile
from exporter.verdict import Problem, ProblemError, Verdict


@dataclass(slots=True, kw_only=True)
class ExportSummary:
    """What an export did.

    Attributes:
        images: Images that are whole in OUT.
        unchanged: Those of them that were right before.
        failed: Images that could not be exported.
        links: Hard links made.
        unique_bytes: Size of the distinct files that the images consist of.
        linked_bytes: Size of the images added up; minus `unique_bytes` it is what linking saves.
    """

    images: int = 0
    unchanged: int = 0
    failed: int = 0
    links: int = 0
    unique_bytes: int = 0
    linked_bytes: int = 0


def export(
    storage: Storage,
    out: str,
    *,
    selection: Selection | None = None,
    untagged: bool = False,
    observe: Observer = silent,
) -> ExportSummary:
    """Bring OUT up to date with the registry: every selected tag as a whole `dir:` image.

    An image directory appears whole or not at all. What is right already is left alone, what is
    not is replaced, so running it again after any interruption finishes the work. A tag that
    cannot be exported becomes a `Failed` event and the others go on. Everything that the summary
    counts survives a power cut.

    Args:
        storage: The source; never written to.
        out: Directory on the same file system; made if absent. The caller holds its lock.
        selection: Which tags; all by default.
        untagged: Also the manifests that no tag reaches.
        observe: Is told about every image.

    Raises:
        UsageError: Nothing matches, or hard links into OUT are impossible.
        NoSpaceError: The file system is full; what was finished stays.
        SourceError: The registry has no tags.
    """
    images, unreadable = select(candidates(storage, untagged=untagged), selection or Selection())
    observe(Started(verb="export", images=len(images) + len(unreadable)))
    summary = ExportSummary()

    def tell(event: Event) -> None:
        summary.failed += isinstance(event, Failed)
        observe(event)

    record = dirlayout.read_record(out) | {image.name: image.digest for image in images}
    builder = _Builder(storage, out, existing=set(dirlayout.staged(out)), summary=summary)
    try:
        builder.clean()
        dirlayout.write_record(out, record)
        builder.try_link(images)
        for digest, names in _by_digest(images).items():
            for event in builder.build(digest, names):
                tell(event)
        builder.clean()
        files.sync(out)
    except OSError as error:
        raise files.failure(error, out) from None
    for tag in storage.still_unreadable(unreadable):
        problem = tag.problem
        tell(Failed(verb="export", name=tag.name, error=problem.verdict, message=problem.message))
    return summary


def _by_digest(images: Iterable[TaggedImage]) -> dict[Digest, list[ImageName]]:
    """Group names by digest, so that a manifest is read once however many tags share it."""
    groups: dict[Digest, list[ImageName]] = {}
    for image in images:
        groups.setdefault(image.digest, []).append(image.name)
    return groups


class _Builder:
    """Builds image directories under OUT/.skopeo-dir/building and renames them into place."""

    def __init__(
        self, storage: Storage, out: str, *, existing: set[ImageName], summary: ExportSummary
    ) -> None:
        self._storage = storage
        self._out = out
        self._existing = existing
        self._summary = summary
        self._work = f"{dirlayout.work_directory(out)}/building"
        self._version = f"{dirlayout.work_directory(out)}/{dirlayout.VERSION_FILE}"
        self._version_inode = os.stat(self._version).st_ino
        self._blobs: dict[Digest, BlobFile] = {}
        self._hashes: dict[Digest, Digest] = {}
        self._counted: set[int] = set()  # inodes in `unique_bytes`
        self._parents: set[str] = set()
        self._serial = 0

    def clean(self) -> None:
        """Remove what an interrupted run left half built."""
        with os.scandir(self._work) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path)
                else:
                    os.unlink(entry.path)

    def try_link(self, images: Iterable[TaggedImage]) -> None:
        """Link one file of the registry and take the link away: refuse before anything is built."""
        for image in images:
            path = self._storage.path(image.digest)
            if os.path.isfile(path):
                link.try_link(path, self._work)
                return

    def build(self, digest: Digest, names: Sequence[ImageName]) -> Iterable[Event]:
        """Yield what became of each of the images that `digest` is tagged as."""
        try:
            contents = self._contents(resolve(digest, self._storage.manifest), names[0].repository)
        except ProblemError as error:
            for name in names:
                yield self._failed(name, digest, error.problem)
            return
        size = sum(blob.size for blob, _ in contents.values())
        for name in names:
            try:
                status = self._place(name, contents)
            except ProblemError as error:
                yield self._failed(name, digest, error.problem)
                continue
            except UsageError as error:
                yield Failed(verb="export", name=str(name), error="link", message=error.message)
                continue
            self._summary.images += 1
            self._summary.unchanged += status == "unchanged"
            self._summary.linked_bytes += size
            self._count_unique(blob for blob, _ in contents.values())
            yield Exported(
                name=str(name), digest=digest, status=status, files=len(contents), size=size
            )

    def _count_unique(self, blobs: Iterable[BlobFile]) -> None:
        for blob in blobs:
            if blob.inode not in self._counted:
                self._counted.add(blob.inode)
                self._summary.unique_bytes += blob.size

    def _contents(
        self, closure: Closure, repository: RepositoryName
    ) -> dict[str, tuple[BlobFile, str]]:
        """Return the files of an image directory but `version`: name to source file and its path.

        Raises:
            ProblemError: A manifest or blob is missing or unusable.
        """
        for problem in (*closure.problems, *blob_problems(closure, self, repository)):
            if not problem.verdict.exports:
                raise ProblemError(problem.verdict, problem.path, problem.message)
        names = {dirlayout.MANIFEST: closure.root}
        names |= {dirlayout.child_manifest(digest): digest for digest in closure.children()}
        for digest in (*closure.blobs, *self._present(closure.foreign)):
            stored = self.canonical(digest, repository)
            names |= dict.fromkeys(dirlayout.blob_names(digest), stored)
        return {
            name: (self.blob(digest), self._storage.path(digest)) for name, digest in names.items()
        }

    def _present(self, digests: Iterable[Digest]) -> Iterator[Digest]:
        """Yield the foreign layers that storage has all the same; skopeo takes them along, too."""
        for digest in digests:
            with suppress(ProblemError):
                self.blob(digest)
                yield digest

    def canonical(self, digest: Digest, repository: RepositoryName) -> Digest:
        """See `Storage.canonical`."""
        return self._storage.canonical(digest, repository)

    def blob(self, digest: Digest) -> BlobFile:
        """See `Storage.blob`; each file is looked at once."""
        found = self._blobs.get(digest)
        if found is None:
            found = self._blobs[digest] = self._storage.blob(digest)
        return found

    def hash(self, digest: Digest) -> Digest:
        """See `Storage.hash`; each file is read once."""
        if digest not in self._hashes:
            self._hashes[digest] = self._storage.hash(digest)
        return self._hashes[digest]

    def _failed(self, name: ImageName, digest: Digest, problem: Problem) -> Failed:
        """Return the failure of an image; a registry in use may have moved its tag meanwhile."""
        verdict, message = problem.verdict, problem.message
        if self._storage.has_moved(TaggedImage(name, digest)):
            verdict = Verdict.CHANGED_DURING_SCAN
            message = f"the tag has moved since the scan ({problem.message})"
        return Failed(verb="export", name=str(name), error=verdict, message=message)

    def _place(self, name: ImageName, contents: dict[str, tuple[BlobFile, str]]) -> str:
        """Make the image directory what it should be; return `made`, `replaced` or `unchanged`."""
        try:
            final = dirlayout.image_directory(self._out, name)
        except ValueError as error:
            raise ProblemError(Verdict.INVALID_NAME, "", str(error)) from None
        exists = name in self._existing
        if exists and self._is_right(final, contents):
            return "unchanged"
        temporary = self._temporary()
        os.mkdir(temporary)
        for file_name, (_, path) in contents.items():
            self._link(path, f"{temporary}/{file_name}")
        self._link(self._version, f"{temporary}/{dirlayout.VERSION_FILE}")
        self._summary.links += len(contents) + 1
        if exists:
            old = self._temporary()
            os.rename(final, old)
            os.rename(temporary, final)
            shutil.rmtree(old)
            return "replaced"
        parent = os.path.dirname(final)
        try:
            if parent not in self._parents:
                os.makedirs(parent, exist_ok=True)
                self._parents.add(parent)
            os.rename(temporary, final)
        except OSError as error:
            if error.errno not in {errno.EEXIST, errno.ENOTDIR, errno.ENOTEMPTY}:
                raise
            raise UsageError(f"something that is no image stands in the way of {final}") from None
        return "made"

    def _temporary(self) -> str:
        self._serial += 1
        return f"{self._work}/{self._serial}"

    def _link(self, source: str, target: str) -> None:
        try:
            os.link(source, target)
        except OSError as error:
            if error.errno == errno.ENOENT:
                message = f"{os.path.basename(target)} vanished from the blob store"
                raise ProblemError(Verdict.MISSING_BLOB, source, message) from None
            raise link.refusal(error, source, self._out) from None

    def _is_right(self, directory: str, contents: dict[str, tuple[BlobFile, str]]) -> bool:
        """Tell if a directory has exactly the wanted names, each being the registry's own inode."""
        with os.scandir(directory) as entries:
            inodes = {entry.name: entry.inode() for entry in entries}
        wanted = {name: blob.inode for name, (blob, _) in contents.items()}
        return inodes == wanted | {dirlayout.VERSION_FILE: self._version_inode}
