"""What is found in a registry's storage: tags, files of blobs, and what an archive says of them."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from exporter.digest import Digest
from exporter.reference import ImageName
from exporter.verdict import Problem


class TaggedImage(NamedTuple):
    """A tag and the digest that its link file names."""

    name: ImageName
    digest: Digest


class UnreadableTag(NamedTuple):
    """Something that stands where a tag or repository would, and why it is none.

    Attributes:
        name: `<repository>:<tag>`, or a repository alone; printable, not a valid name.
        problem: Why.
        image: The valid name of the tag, if it has one.
    """

    name: str
    problem: Problem
    image: ImageName | None = None


class BlobFile(NamedTuple):
    """A blob or manifest, and what the file system says of it.

    Attributes:
        digest: Under which it is stored.
        path: Relative to the root.
        size: Bytes.
        inode: Number; 0 if it is only in an archive.
    """

    digest: Digest
    path: str
    size: int
    inode: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Archived:
    """What an archive says besides the tree that was made of it.

    Attributes:
        name: What the user calls the archive.
        sizes: Bytes of blobs that the archive has and the tree need not have.
        verified: Those of them that were read and are what they are called.
        problems: Blobs that the archive has, but not whole.
        unreadable: Tags that cannot be a link file in the tree.
    """

    name: str
    sizes: Mapping[Digest, int] = field(default_factory=dict)
    verified: Collection[Digest] = frozenset()
    problems: Mapping[Digest, Problem] = field(default_factory=dict)
    unreadable: Sequence[UnreadableTag] = ()


def printable(path: str) -> str:
    """Return a path as text that any terminal and JSON can show, whatever bytes it had."""
    text = path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
