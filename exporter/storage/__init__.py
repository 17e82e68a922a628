"""The source: a registry's storage tree, read only."""

from exporter.storage.tree import BlobFile, Storage, TaggedImage, UnreadableTag, printable

__all__ = ["BlobFile", "Storage", "TaggedImage", "UnreadableTag", "printable"]
