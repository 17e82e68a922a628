"""Image directories out of the registry's files: built aside, and renamed when whole."""

import errno
import itertools
import os
import shutil
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from operator import attrgetter

from exporter import dirlayout, files, link
from exporter.digest import Digest
from exporter.errors import SkopeoDirError, UsageError
from exporter.events import Exported, Failed
from exporter.link import LinkCounts, LinkMode, Links
from exporter.plan import Closure, blob_files, resolve
from exporter.reference import ImageName, RepositoryName
from exporter.storage import BlobFile, Storage, TaggedImage
from exporter.verdict import Problem, ProblemError, Verdict

_REMEMBERED = 2**13  # blobs: tags that share some mostly follow each other


@dataclass(slots=True)
class Batch:
    """What became of some images.

    Attributes:
        events: One for each image.
        sizes: Bytes of the registry's files that those which were made consist of, by inode.
        counts: How these files came there.
        error: What ended the batch before its end, if anything did.
    """

    events: list[Exported | Failed] = field(default_factory=list)
    sizes: dict[int, int] = field(default_factory=dict)
    counts: LinkCounts = field(default_factory=LinkCounts)
    error: SkopeoDirError | None = None


class Builder:
    """Builds image directories under OUT/.skopeo-dir/building and renames them into place.

    Safe in forks, not in threads. To be closed.

    Args:
        storage: Where the files are.
        out: A directory that `dirlayout.prepare` made ready.
        mode: How files come into images; what `link.choose` returned.
        existing: The image directories that are there, right or not.
    """

    def __init__(
        self, storage: Storage, out: str, mode: LinkMode, existing: Collection[str]
    ) -> None:
        self._storage = storage
        self._out = out
        self._mode = mode
        self._existing = existing
        work = dirlayout.work_directory(out)
        self._work = f"{work}/{dirlayout.BUILDING}"
        self._work_descriptor = files.directory_descriptor(self._work)
        relays = dirlayout.relays(out)
        self._links = Links(mode, root=storage.root, work=self._work, relays=relays)
        self._own_links = Links(LinkMode.AUTO, root=work, work=self._work, relays=relays)
        self._version = BlobFile(
            Digest.of(dirlayout.VERSION),
            dirlayout.VERSION_FILE,
            len(dirlayout.VERSION),
            os.stat(f"{work}/{dirlayout.VERSION_FILE}").st_ino,
        )
        self._parents: set[str] = set()
        self._process = 0
        self._serial = itertools.count()
        self.blob = lru_cache(_REMEMBERED)(storage.blob)  # each file is looked at once
        self.hash = lru_cache(_REMEMBERED)(storage.hash)
        self.canonical = storage.canonical
        self._closure = lru_cache(1)(lambda root: resolve(root, storage.manifest))

    def close(self) -> None:
        """Close the directories that it names files from."""
        self._links.close()
        self._own_links.close()
        os.close(self._work_descriptor)

    def files_needed(self, roots: Iterable[Digest]) -> list[int]:
        """Return the bytes of each file that has to be made before it can be linked."""
        if self._mode not in {LinkMode.REFLINK, LinkMode.COPY}:
            return []
        sizes: dict[Digest, int] = {}
        for root in roots:
            closure = resolve(root, self._storage.manifest)
            sizes |= {digest: each.size for digest, each in closure.manifests.items()}
            sizes |= {digest: each.size or 0 for digest, each in closure.blobs.items()}
        needed = (self._links.bytes_needed(digest, size) for digest, size in sizes.items())
        return [size for size in needed if size is not None]

    def build(self, images: Sequence[TaggedImage]) -> Batch:
        """Make each image what it should be; those of one digest follow each other."""
        batch = Batch()
        self._process = os.getpid()
        self._links.counts = self._own_links.counts = batch.counts
        try:
            for digest, group in itertools.groupby(images, attrgetter("digest")):
                self._build(digest, [image.name for image in group], batch)
        except SkopeoDirError as error:
            batch.error = error
        except OSError as error:
            batch.error = files.failure(error, self._out)
        return batch

    def _build(self, digest: Digest, names: Sequence[ImageName], batch: Batch) -> None:
        try:
            contents = self._contents(self._closure(digest), names[0].repository)
        except ProblemError as error:
            batch.events += [self._failed(name, digest, error.problem) for name in names]
            return
        size = sum([file.size for file in contents.values()])
        sizes = {file.inode: file.size for file in contents.values()}
        for name in names:
            try:
                status = self._place(name, contents)
            except ProblemError as error:
                batch.events.append(self._failed(name, digest, error.problem))
                continue
            except UsageError as error:
                batch.events.append(
                    Failed(verb="export", name=str(name), error="link", message=error.message)
                )
                continue
            if status != "unchanged":
                batch.sizes |= sizes
            batch.events.append(
                Exported(
                    name=str(name), digest=digest, status=status, files=len(contents), size=size
                )
            )

    def _contents(self, closure: Closure, repository: RepositoryName) -> dict[str, BlobFile]:
        """Return the files of an image directory but `version`, by name.

        Raises:
            ProblemError: A manifest or blob is missing or unusable.
        """
        _raise_obstacles(closure.problems)
        contents = {dirlayout.MANIFEST: self.blob(closure.root)}
        for digest in closure.children():
            contents[dirlayout.child_manifest(digest)] = self.blob(digest)
        blobs, problems = blob_files(closure, self, repository)
        _raise_obstacles(problems)
        for digest, file in blobs.items():
            for name in dirlayout.blob_names(digest):
                contents[name] = file
        for digest in closure.foreign:
            with suppress(ProblemError):  # if storage has it all the same, skopeo takes it along
                file = self.blob(self.canonical(digest, repository))
                contents |= dict.fromkeys(dirlayout.blob_names(digest), file)
        return contents

    def _failed(self, name: ImageName, digest: Digest, problem: Problem) -> Failed:
        """Return the failure of an image; a registry in use may have moved its tag meanwhile."""
        verdict, message = problem.verdict, problem.message
        if self._storage.has_moved(TaggedImage(name, digest)):
            verdict = Verdict.CHANGED_DURING_SCAN
            message = f"the tag has moved since the scan ({problem.message})"
        return Failed(verb="export", name=str(name), error=verdict, message=message)

    def _place(self, name: ImageName, contents: dict[str, BlobFile]) -> str:
        """Make the image directory what it should be; return `made`, `replaced` or `unchanged`."""
        try:
            final = dirlayout.image_directory(self._out, name)
        except ValueError as error:
            raise ProblemError(Verdict.INVALID_NAME, "", str(error)) from None
        exists = str(name) in self._existing
        if exists and self._is_right(final, contents):
            return "unchanged"
        temporary = self._temporary()
        os.mkdir(temporary, dir_fd=self._work_descriptor)
        self._fill(temporary, contents)
        if exists:
            old = f"{self._work}/{self._temporary()}"
            os.rename(final, old)
            os.rename(f"{self._work}/{temporary}", final)
            shutil.rmtree(old)
            return "replaced"
        parent = os.path.dirname(final)
        try:
            if parent not in self._parents:
                os.makedirs(parent, exist_ok=True)
                self._parents.add(parent)
            os.rename(temporary, final, src_dir_fd=self._work_descriptor)
        except OSError as error:
            if error.errno not in {errno.EEXIST, errno.ENOTDIR, errno.ENOTEMPTY}:
                raise
            raise UsageError(f"something that is no image stands in the way of {final}") from None
        return "made"

    def _temporary(self) -> str:
        """Return a name that no other fork uses."""
        return f"{self._process}-{next(self._serial)}"

    def _fill(self, directory: str, contents: dict[str, BlobFile]) -> None:
        version, put = self._version, self._links.put
        self._own_links.put(version.path, version.digest, f"{directory}/{dirlayout.VERSION_FILE}")
        for name, file in contents.items():
            try:
                put(file.path, file.digest, f"{directory}/{name}")
            except FileNotFoundError:
                message = f"{name} vanished from the blob store"
                raise ProblemError(Verdict.MISSING_BLOB, file.path, message) from None
            except OSError as error:
                raise link.refusal(error, self._storage.path(file.digest), self._out) from None

    def _is_right(self, directory: str, contents: dict[str, BlobFile]) -> bool:
        """Tell if a directory has exactly the wanted names, each of them the right inode."""
        wanted = contents | {dirlayout.VERSION_FILE: self._version}
        with os.scandir(directory) as entries:
            for entry in entries:
                file = wanted.pop(entry.name, None)
                links = self._own_links if file is self._version else self._links
                if file is None or not links.is_right(entry, file.path, file.inode, file.digest):
                    return False
        return not wanted


def _raise_obstacles(problems: Iterable[Problem]) -> None:
    for problem in problems:
        if not problem.verdict.exports:
            raise ProblemError(problem.verdict, problem.path, problem.message)
