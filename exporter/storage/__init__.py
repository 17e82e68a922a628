"""The source: a registry's storage, a tree or an archive of one, read only."""

from exporter.storage.locate import STDIN
from exporter.storage.tree import BlobFile, Storage, TaggedImage, UnreadableTag, printable

__all__ = [
    "STDIN",
    "BlobFile",
    "Storage",
    "TaggedImage",
    "UnreadableTag",
    "printable",
]
