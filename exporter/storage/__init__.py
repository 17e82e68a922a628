"""The source: a registry's storage, a tree or an archive of one, read only."""

from exporter.storage.locate import STDIN
from exporter.storage.records import BlobFile, TaggedImage, UnreadableTag, printable
from exporter.storage.tree import Storage

__all__ = [
    "STDIN",
    "BlobFile",
    "Storage",
    "TaggedImage",
    "UnreadableTag",
    "printable",
]
