"""The source: a registry's storage, a tree or an archive of one, read only."""

from exporter.storage.archive import STDIN, Archive
from exporter.storage.archive_tree import ArchiveTree
from exporter.storage.tree import BlobFile, Storage, TaggedImage, UnreadableTag, printable

__all__ = [
    "STDIN",
    "Archive",
    "ArchiveTree",
    "BlobFile",
    "Storage",
    "TaggedImage",
    "UnreadableTag",
    "printable",
]
