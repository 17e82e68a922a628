"""Read a registry's storage tree. Nothing is ever written to it."""

import hashlib
import os
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from typing import Self

from exporter import files, manifest
from exporter.digest import Digest
from exporter.errors import SourceError
from exporter.manifest import Manifest, ManifestError
from exporter.reference import ImageName, RepositoryName, parse_repository_name, parse_tag
from exporter.storage import layout
from exporter.storage.locate import storage_root
from exporter.storage.records import Archived, BlobFile, TaggedImage, UnreadableTag, printable
from exporter.verdict import Problem, ProblemError, Verdict

_parse_repository_name = lru_cache(1)(parse_repository_name)  # one has many tags
_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_WRITING_SECONDS = (0.25, 0.5)  # each is more than a registry takes between the steps of a write
LINK_LENGTH = 256  # longest digest is 135 bytes; more is not a link file


class Storage:
    """One registry's storage tree, read only. Thread-safe: it never changes.

    Attributes:
        root: Absolute path of `docker/registry/v2`.
    """

    def __init__(
        self, root: str, *, archived: Archived | None = None, descriptor: int | None = None
    ) -> None:
        self.root = root
        self._archived = archived or Archived(name=root)
        self._descriptor = descriptor
        self._prefix = f"{root}/" if descriptor is None else ""

    @classmethod
    def open(cls, source: str) -> Self:
        """Return the storage at, above or below the directory `source`.

        Raises:
            SourceError: There is none, or more than one.
        """
        return cls(storage_root(source))

    @contextmanager
    def opened(self) -> Iterator[Self]:
        """Give the same storage, which names its files from an open directory.

        The kernel walks a short path in less time than a long one, and there are many to walk.

        Raises:
            OSError: The root cannot be opened.
        """
        descriptor = files.directory_descriptor(self.root)
        try:
            yield type(self)(self.root, archived=self._archived, descriptor=descriptor)
        finally:
            os.close(descriptor)

    def path(self, digest: Digest) -> str:
        """Return the absolute path of the content of `digest`, whether it exists or not."""
        return f"{self.root}/{layout.blob(digest)}"

    def tags(self) -> Iterator[TaggedImage | UnreadableTag]:
        """Yield every tag of every repository, sorted by repository, then tag; maybe none.

        A tag directory without `current/link` is yielded as unreadable: a registry that crashed
        leaves such, and so does damage. Directories of blobs (`_layers`) are never entered.

        Raises:
            SourceError: The repositories cannot be read.
        """
        for repository in self.repositories():
            if isinstance(repository, UnreadableTag):
                yield repository
                continue
            directory = layout.tags(repository)
            try:
                tags = sorted(os.listdir(f"{self.root}/{directory}"))
            except FileNotFoundError:
                continue  # every manifest was pushed by digest
            except OSError as error:
                yield _unreadable(repository, directory, error)
                continue
            for tag in tags:
                yield self._tag(repository, tag)
        yield from self._archived.unreadable

    def revisions(self, repository: RepositoryName) -> Iterator[Digest | UnreadableTag]:
        """Yield the digest of every manifest that a repository has, sorted by link file.

        A directory without a link is what is left of a deleted manifest, and is passed over.
        """
        directory = layout.revisions(repository)
        try:
            names = sorted(os.listdir(f"{self.root}/{directory}"))
        except FileNotFoundError:
            return
        except OSError as error:
            yield _unreadable(repository, directory, error)
            return
        for name in names:
            with suppress(FileNotFoundError):
                found = self._link(f"{directory}/{name}/link", "the manifest's")
                if isinstance(found, Digest):
                    yield found
                    continue
                shown = f"{repository}@sha256:{name}"
                image = None
                with suppress(ValueError):
                    image = ImageName.parse(shown)
                yield UnreadableTag(printable(shown), found, image)

    def still_unreadable(self, tags: Sequence[UnreadableTag]) -> list[UnreadableTag]:
        """Read tags again, after growing moments; those that were only being written have changed.

        Spec: registry/storage/tagstore.go, Tag: the directory of a tag is there before its link;
        filesystem/driver.go, PutContent: 2.x empties a link before it writes it.
        """
        changed = Verdict.CHANGED_DURING_SCAN
        for seconds in _WRITING_SECONDS:
            # One that is deleted and pushed again may lack its link each time it is looked at.
            if any(tag.image is not None and tag.problem.verdict is not changed for tag in tags):
                time.sleep(seconds)
                tags = [self._again(tag) for tag in tags]
        return list(tags)

    def _again(self, tag: UnreadableTag) -> UnreadableTag:
        if tag.image is None:
            return tag
        repository, reference = tag.image.repository, tag.image.reference
        if isinstance(reference, Digest):
            link = place = layout.revision_link(repository, reference)
            whose = "the manifest's"
        else:
            link, whose = layout.tag_link(repository, reference), "the tag's"
            place = os.path.dirname(os.path.dirname(link))
        try:
            found = self._link(link, whose)
        except FileNotFoundError:
            found = tag.problem
        if found == tag.problem and os.path.lexists(f"{self.root}/{place}"):
            return tag
        message = f"{whose} link file was written or deleted during the scan"
        return tag._replace(problem=Problem(Verdict.CHANGED_DURING_SCAN, link, message))

    def has_moved(self, image: TaggedImage) -> bool:
        """Tell if a tag names another digest by now, or is gone: the registry is in use."""
        repository, reference = image.name.repository, image.name.reference
        if not isinstance(reference, Digest):
            return self._tag(repository, reference) != image
        link = f"{self.root}/{layout.revision_link(repository, reference)}"
        # A link file under another digest's path counts, too: its content decides.
        return not os.path.lexists(link) and reference not in self.revisions(repository)

    def lacks(self, name: ImageName) -> bool:
        """Tell if a tag, or a manifest without one, is gone; what cannot be seen is not gone."""
        if isinstance(name.reference, Digest):
            path = layout.revision_link(name.repository, name.reference)
        else:
            path = f"{layout.tags(name.repository)}/{name.reference}"
        try:
            os.lstat(f"{self.root}/{path}")
        except (FileNotFoundError, NotADirectoryError):
            return True
        except OSError:
            return False
        return False

    def without_tags(self) -> SourceError:
        """Return the error of a registry in which there is nothing to migrate, and why that is."""
        name = f"the registry in {self._archived.name}"
        database = os.path.join(os.path.dirname(self.root), "lockfiles", "database-in-use")
        repositories = sum(1 for _ in self.repositories())
        if os.path.exists(database):
            return SourceError(
                f"{name} keeps its tags in GitLab's metadata database",
                hint="only the manifests are on disk: --untagged takes them by digest",
            )
        if repositories:
            return SourceError(
                f"{name} has {repositories} repositories and no tags",
                hint="Harbor 2.15+ and OpenShift keep tags in a database; "
                "--untagged takes the manifests by digest",
            )
        return SourceError(f"{name} is empty: it has no repositories")

    def repositories(self) -> Iterator[str | UnreadableTag]:
        """Yield the path of every directory that has `_manifests`, sorted, as found on disk.

        Spec: catalog.go, handleRepository of distribution 3.x (2.x looks for `_layers`, which a
        repository without manifests may have; it has nothing to migrate).

        Raises:
            SourceError: The directory of all repositories cannot be read.
        """
        pending = [""]
        while pending:
            name = pending.pop()
            try:
                with os.scandir(f"{self.root}/{layout.repository(name)}") as entries:
                    children = sorted(entries, key=lambda entry: entry.name, reverse=True)
            except FileNotFoundError:
                continue  # deleted while we walk, or a registry without a single repository
            except OSError as error:
                if not name:
                    raise SourceError(
                        f"{self.root}/repositories cannot be read: {error.strerror}"
                    ) from None
                yield _unreadable(name, layout.repository(name), error)
                continue
            for child in children:
                below = f"{name}/{child.name}" if name else child.name
                if child.name == layout.MANIFESTS:
                    yield name
                elif child.name.startswith("_"):
                    continue
                elif child.is_dir(follow_symlinks=False):
                    pending.append(below)
                elif child.is_symlink():
                    message = "a symbolic link stands where a repository would, and is not followed"
                    path = layout.repository(below)
                    problem = Problem(Verdict.INVALID_NAME, printable(path), message)
                    yield UnreadableTag(printable(below), problem)

    def manifest(self, digest: Digest) -> Manifest:
        """Return the manifest whose bytes hash to `digest`.

        Raises:
            ProblemError: It is missing, unreadable, damaged, or no manifest.
        """
        path = layout.blob(digest)
        self._raise_problem(digest)
        try:
            content = self._read(path, manifest.MAX_SIZE)
        except FileNotFoundError:
            message = f"the manifest {digest} is not in the blob store"
            raise ProblemError(Verdict.MISSING_MANIFEST, path, message) from None
        except OSError as error:
            message = f"the manifest {digest} cannot be read: {error.strerror}"
            raise ProblemError(Verdict.MISSING_MANIFEST, path, message) from None
        too_large = len(content) > manifest.MAX_SIZE  # and so not read to its end
        if not too_large and Digest.of(content, algorithm=digest.algorithm) != digest:
            message = f"the manifest {digest} is damaged: its bytes have another digest"
            raise ProblemError(Verdict.WRONG_DIGEST, path, message)
        try:
            return manifest.parse(content)
        except ManifestError as error:
            message = f"the manifest {digest} cannot be used: {error}"
            raise ProblemError(Verdict.INVALID_MANIFEST, path, message) from None

    def canonical(self, digest: Digest, repository: RepositoryName) -> Digest:
        """Return the digest under which a blob is stored, which differs for sha512.

        Spec: blobwriter.go, Commit and linkBlob: the content is stored under its sha256, and the
        repository's link file of the digest that the client used says which.
        """
        if digest.startswith("sha256:"):
            return digest
        try:
            path = layout.layer_link(repository, digest)
            return Digest.parse(self._read(path, LINK_LENGTH).decode("ascii", "replace"))
        except (OSError, ValueError):
            return digest

    def blob(self, digest: Digest) -> BlobFile:
        """Return the file of a blob or manifest, without opening it.

        Raises:
            ProblemError: It is missing or is not a regular file.
        """
        path = layout.blob(digest)
        if digest in self._archived.problems:
            self._raise_problem(digest)
        try:
            status = os.stat(
                f"{self._prefix}{path}", dir_fd=self._descriptor, follow_symlinks=False
            )
        except OSError as error:
            if digest in self._archived.sizes:
                return BlobFile(digest, path, self._archived.sizes[digest], 0)
            missing = isinstance(error, FileNotFoundError | NotADirectoryError)
            reason = "is not in the blob store" if missing else f"is unreadable: {error.strerror}"
            raise ProblemError(Verdict.MISSING_BLOB, path, f"the blob {digest} {reason}") from None
        if not stat.S_ISREG(status.st_mode):
            message = f"the blob {digest} is not a regular file"
            raise ProblemError(Verdict.MISSING_BLOB, path, message)
        return BlobFile(digest, path, status.st_size, status.st_ino)

    def hash(self, digest: Digest) -> Digest:
        """Return the digest that a blob's content really has; reads all of it.

        Raises:
            ProblemError: It cannot be read.
        """
        if self._is_only_archived(digest):
            if digest in self._archived.verified:
                return digest
            message = f"the blob {digest} has another size in the archive than its manifest says"
            raise ProblemError(Verdict.WRONG_SIZE, layout.blob(digest), message)
        path = layout.blob(digest)
        try:
            with open(os.open(f"{self.root}/{path}", _FLAGS), "rb", buffering=0) as file:
                found = hashlib.file_digest(file, digest.algorithm)
        except OSError as error:
            message = f"the blob {digest} cannot be read: {error.strerror}"
            raise ProblemError(Verdict.MISSING_BLOB, path, message) from None
        return Digest(f"{digest.algorithm}:{found.hexdigest()}")

    def is_readable(self, digest: Digest) -> bool:
        """Tell if this user may read the content of a blob."""
        return self._is_only_archived(digest) or os.access(self.path(digest), os.R_OK)

    def _is_only_archived(self, digest: Digest) -> bool:
        return digest in self._archived.sizes and not os.path.lexists(self.path(digest))

    def _raise_problem(self, digest: Digest) -> None:
        problem = self._archived.problems.get(digest)
        if problem is not None:
            raise ProblemError(problem.verdict, problem.path, problem.message)

    def _tag(self, repository: str, tag: str) -> TaggedImage | UnreadableTag:
        path = layout.tag_link(repository, tag)
        try:
            name = ImageName(_parse_repository_name(repository), parse_tag(tag))
        except ValueError as error:
            problem = Problem(Verdict.INVALID_NAME, printable(path), f"{error}")
            return UnreadableTag(printable(f"{repository}:{tag}"), problem)
        try:
            found = self._link(path, "the tag's")
        except FileNotFoundError as error:
            message = f"the tag's link file cannot be read: {error.strerror}"
            found = Problem(Verdict.INVALID_LINK, path, message)
        if isinstance(found, Problem):
            return UnreadableTag(printable(f"{repository}:{tag}"), found, name)
        return TaggedImage(name, found)

    def _link(self, path: str, whose: str) -> Digest | Problem:
        """Return the digest that a link file names, or why it names none.

        Raises:
            FileNotFoundError: There is no such file.
        """
        try:
            content = self._read(path, LINK_LENGTH)
            if content:
                return Digest.parse(content.decode("ascii", "replace"))
        except FileNotFoundError:
            raise
        except OSError as error:
            verdict, reason = Verdict.INVALID_LINK, f"cannot be read: {error.strerror}"
        except ValueError as error:
            verdict, reason = Verdict.INVALID_LINK, f"has no digest: {error}"
        else:
            verdict, reason = Verdict.EMPTY_LINK, "is empty (the registry crashed while writing it)"
        return Problem(verdict, printable(path), f"{whose} link file {reason}")

    def _read(self, path: str, limit: int) -> bytes:
        """Return the content of a regular file, at most `limit` + 1 bytes of it.

        Neither a FIFO nor a device can make it wait, and a symbolic link is an error.

        Raises:
            OSError: It cannot be read or is not a regular file.
        """
        descriptor = os.open(f"{self._prefix}{path}", _FLAGS, dir_fd=self._descriptor)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise OSError(0, "not a regular file")
            return os.read(descriptor, min(status.st_size, limit) + 1)
        finally:
            os.close(descriptor)


def _unreadable(name: str, path: str, error: OSError) -> UnreadableTag:
    message = f"the repository's directory cannot be read: {error.strerror}"
    return UnreadableTag(printable(name), Problem(Verdict.INVALID_LINK, printable(path), message))
