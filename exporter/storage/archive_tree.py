"""A tarball becomes a tree, so that everything else has one way to read a registry."""

import hashlib
import os
import shutil
import stat
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import BinaryIO

from exporter import manifest
from exporter.digest import Digest
from exporter.errors import SourceError
from exporter.storage import layout, members
from exporter.storage.archive import Archive
from exporter.storage.compression import CHUNK
from exporter.storage.members import Blob, Link, Place
from exporter.storage.records import Archived, UnreadableTag, printable
from exporter.storage.tar import BLOCK, Kind, Member, TarReader
from exporter.storage.tree import LINK_LENGTH, Storage
from exporter.verdict import Problem, Verdict


class ArchiveTree:
    """A storage tree that is made of an archive, as much of it as is asked for.

    A blob is written under another name and renamed when its digest was right, so what is in the
    tree is whole, also after an interruption. Not thread-safe.

    Args:
        archive: What to read.
        directory: Where the tree is, or will be; blobs of an earlier run there are used again.
        present: Files elsewhere on the same file system that may hold a blob: they are linked
            into the tree if their content is right.
        written: Is told every blob that was written, and its size.

    Attributes:
        sizes: Bytes of every blob that was met in the archive.
    """

    def __init__(
        self,
        archive: Archive,
        directory: str,
        *,
        present: Mapping[Digest, str] | None = None,
        written: Callable[[Digest, int], None] = lambda _digest, _size: None,
    ) -> None:
        self.sizes: dict[Digest, int] = {}
        self._archive = archive
        self._directory = directory
        self._tree = f"{directory}/docker/registry/v2"
        self._present = present or {}
        self._written = written
        self._root: str | None = None
        self._aliases: dict[str, list[Place]] = {}
        self._followed: set[str] = set()
        self._verified: set[Digest] = set()
        self._seen: set[Digest] = set()
        self._problems: dict[Digest, Problem] = {}
        self._unreadable: dict[str, UnreadableTag] = {}
        # Which tags there are may have changed since an earlier run; blobs cannot.
        shutil.rmtree(f"{self._tree}/repositories", ignore_errors=True)
        for name in ("repositories", "blobs"):
            os.makedirs(f"{self._tree}/{name}", exist_ok=True)

    def scan(self, *, digests: bool = False) -> None:
        """Bring link files into the tree, and every blob that may be a manifest.

        Args:
            digests: Read all other blobs, too, to see if they are what they are called.

        Raises:
            SourceError: There is more than one registry.
            OSError: The tree cannot be written.
        """
        self._read(lambda digest, reader: self._scan_blob(digest, reader, digests=digests))

    def fetch(self, wanted: Collection[Digest]) -> None:
        """Bring these blobs into the tree, as far as the archive has them.

        Raises:
            OSError: The tree cannot be written.
        """

        def fetch(digest: Digest, reader: TarReader) -> None:
            if digest in wanted:
                self._store(digest, reader)

        self._read(fetch)

    def unpack(self) -> None:
        """Bring everything into the tree, in one pass.

        Raises:
            SourceError: There is more than one registry.
            OSError: The tree cannot be written.
        """
        self._read(self._store)

    def storage(self, *, sizes: bool = False) -> Storage:
        """Return the tree as a registry's storage.

        Args:
            sizes: Blobs that are only in the archive count as being there.

        Raises:
            SourceError: There is no registry, or nothing but damage.
        """
        if self._root is None:
            self._archive.raise_damage()
            raise SourceError(
                f"{self._archive.name} is not a registry's storage: no docker/registry/v2 in it"
            )
        archived = Archived(
            name=self._archive.name,
            sizes=self.sizes if sizes else {},
            verified=self._verified,
            problems=self._problems,
            unreadable=tuple(self._unreadable.values()),
        )
        return Storage(self._tree, archived=archived)

    def lacks(self, digest: Digest) -> bool:
        """Tell if a blob would have to be written, going by names and sizes."""
        paths = (f"{self._tree}/{layout.blob(digest)}", self._present.get(digest))
        return not any(path and os.path.exists(path) for path in paths)

    def held(self) -> int:
        """Return how many bytes of blobs there are already, going by names."""
        size = sum(os.path.getsize(path) for path in self._present.values())
        for directory, _, names in os.walk(f"{self._tree}/blobs"):
            found = [os.stat(f"{directory}/{name}") for name in names]
            size += sum(each.st_size for each in found if each.st_nlink == 1)
        return size

    def remove(self) -> None:
        """Take the tree away; other links of its files keep them."""
        shutil.rmtree(self._directory, ignore_errors=True)

    def _read(self, blob: Callable[[Digest, TarReader], None]) -> None:
        """Read the archive once, and once more if it has hard links that have to be followed."""
        known = len(self._aliases)
        self._seen.clear()
        with self._archive.stream() as stream:
            reader = TarReader(stream, self._belongs)
            for member in reader:
                own = members.place(member.name)
                if own is not None:
                    self._set_root(own.root)
                    self._take([own, *self._aliases.get(member.name, ())], member, reader, blob)
                elif member.name in self._aliases:
                    self._take(self._aliases[member.name], member, reader, blob)
        self._archive.damage |= dict.fromkeys(reader.damage)
        cut = members.place(reader.cut_member)
        if isinstance(cut, Blob):
            self._problem(cut.digest, Verdict.MISSING_BLOB, "is cut off in the archive")
        if len(self._aliases) > known:
            self._read(blob)
            for target in self._aliases.keys() - self._followed:
                for place in self._aliases[target]:
                    self._refuse(place, Kind.HARD_LINK)

    def _belongs(self, name: str) -> bool:
        place = members.place(name)
        return place is not None and self._root in {None, place.root}

    def _set_root(self, root: str) -> None:
        if self._root not in {None, root}:
            roots = " and ".join(sorted(printable(each or ".") for each in {self._root, root}))
            raise SourceError(
                f"{self._archive.name} holds several registries: {roots}",
                hint="unpack it and give one of them",
            )
        self._root = root

    def _take(
        self,
        places: Sequence[Place],
        member: Member,
        reader: TarReader,
        blob: Callable[[Digest, TarReader], None],
    ) -> None:
        """Bring a member to all of its places: its own, and those that are hard links to it."""
        first = places[0]
        if isinstance(first, Link) and first.is_directory:
            self._tag_directory(first)
            return
        if member.kind is Kind.HARD_LINK and self._archive.repeatable:
            aliases = self._aliases.setdefault(member.target, [])
            aliases += [place for place in places if place not in aliases]
            return
        self._followed.add(member.name)
        if member.kind is not Kind.FILE:
            for place in places:
                self._refuse(place, member.kind)
        elif isinstance(first, Blob):
            self.sizes[first.digest] = member.size
            blob(first.digest, reader)
        else:
            content = reader.read(LINK_LENGTH + 1)
            for place in places:
                if isinstance(place, Link):
                    self._link(place, content if reader.is_complete else content[:LINK_LENGTH])

    def _refuse(self, place: Place, kind: Kind) -> None:
        what = {
            Kind.SPARSE: "is stored as a sparse file (pack it again without --sparse)",
            Kind.HARD_LINK: "is a hard link to something that is not in the archive before it",
        }.get(kind, "is not a regular file")
        if isinstance(place, Blob):
            self._problem(place.digest, Verdict.MISSING_BLOB, what)
        elif place.tag:
            self._bad_tag(place, Verdict.INVALID_LINK, f"the tag's link file {what}")

    def _tag_directory(self, place: Link) -> None:
        """Make the directory of a tag: without a link file in it, the tag is seen to be broken."""
        if place.error:
            self._bad_tag(place, Verdict.INVALID_NAME, place.error)
        elif place.tag and place.tag not in self._unreadable:
            path = f"{self._tree}/{place.path}"
            os.makedirs(os.path.dirname(os.path.dirname(path)), exist_ok=True)

    def _link(self, place: Link, content: bytes) -> None:
        self._tag_directory(place)
        if place.error or place.tag in self._unreadable:
            return
        path = f"{self._tree}/{place.path}"
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "xb") as file:
                file.write(content)
        except FileExistsError:
            with open(path, "rb") as file:
                same = file.read() == content
            if not same and place.tag:
                message = "the archive has two link files for the tag, and they differ"
                self._bad_tag(place, Verdict.INVALID_LINK, message)

    def _bad_tag(self, place: Link, verdict: Verdict, message: str) -> None:
        problem = Problem(verdict, place.path, message)
        self._unreadable[place.tag] = UnreadableTag(place.tag, problem)
        if not place.error:
            self._archive.damage[f"{place.tag}: {message}"] = None
            directory = os.path.dirname(os.path.dirname(f"{self._tree}/{place.path}"))
            shutil.rmtree(directory, ignore_errors=True)

    def _scan_blob(self, digest: Digest, reader: TarReader, *, digests: bool) -> None:
        if self.sizes[digest] <= manifest.MAX_SIZE:
            head = reader.read(BLOCK)
            if head.lstrip().startswith(b"{"):
                self._store(digest, reader, head)
                return
        else:
            head = b""
        if digests and digest not in self._verified:
            self._hash(digest, reader, head, None)

    def _store(self, digest: Digest, reader: TarReader, head: bytes = b"") -> None:
        """Bring a blob into the tree unless it is there."""
        again = digest in self._seen
        self._seen.add(digest)
        if not again and (digest in self._verified or self._adopt(digest)):
            return
        if digest in self._verified:
            # A second copy of it: nothing to write, but it has to be the same.
            self._hash(digest, reader, head, None)
            return
        temporary = f"{self._directory}/new"
        path = f"{self._tree}/{layout.blob(digest)}"
        with open(temporary, "wb") as file:
            whole = self._hash(digest, reader, head, file)
        if whole:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            os.rename(temporary, path)
            self._written(digest, self.sizes[digest])
        else:
            os.unlink(temporary)

    def _hash(self, digest: Digest, reader: TarReader, head: bytes, file: BinaryIO | None) -> bool:
        """Read a blob, and write it if a file is given; return whether it is what it is called."""
        hasher = hashlib.new(digest.algorithm)
        piece = head or reader.some()
        while piece:
            hasher.update(piece)
            if file is not None:
                file.write(piece)
            piece = reader.some()
        if not reader.is_complete:
            self._problem(digest, Verdict.MISSING_BLOB, "is cut off in the archive")
            return False
        if hasher.hexdigest() != digest.hex:
            self._problem(
                digest,
                Verdict.WRONG_DIGEST,
                "is damaged: its bytes in the archive have another digest",
            )
            return False
        self._verified.add(digest)
        self._problems.pop(digest, None)
        return True

    def _problem(self, digest: Digest, verdict: Verdict, what: str) -> None:
        message = f"{digest} {what}"
        self._archive.damage[message] = None
        if digest not in self._verified:
            self._problems[digest] = Problem(verdict, layout.blob(digest), message)

    def _adopt(self, digest: Digest) -> bool:
        """Take a blob from an earlier run, if its content is still right."""
        path = f"{self._tree}/{layout.blob(digest)}"
        if _has_content(path, digest, self.sizes[digest]):
            self._verified.add(digest)
            return True
        source = self._present.get(digest)
        if source is None or not _has_content(source, digest, self.sizes[digest]):
            return False
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            os.link(source, path)
        except OSError:
            return False  # too many links, perhaps; then it is written
        self._verified.add(digest)
        return True


def _has_content(path: str, digest: Digest, size: int) -> bool:
    """Tell if a regular file is what `digest` names; reads it all."""
    try:
        if not stat.S_ISREG(os.lstat(path).st_mode) or os.path.getsize(path) != size:
            return False
        hasher = hashlib.new(digest.algorithm)
        with open(path, "rb", buffering=0) as file:
            while piece := file.read(CHUNK):
                hasher.update(piece)
    except OSError:
        return False
    return hasher.hexdigest() == digest.hex
