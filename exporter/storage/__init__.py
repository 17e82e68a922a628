"""The source: a registry's storage tree, read only."""

from exporter.storage.tree import Storage, TaggedImage, UnreadableTag

__all__ = ["Storage", "TaggedImage", "UnreadableTag"]
