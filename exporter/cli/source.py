"""SOURCE: a directory, or an archive of one. Only an archive pays for importing its readers."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from exporter import files
from exporter.errors import EXIT_OK, EXIT_SOME_FAILED, SourceError, UsageError
from exporter.events import Observer
from exporter.link import LinkMode
from exporter.plan import Selection
from exporter.storage import STDIN, Storage

if TYPE_CHECKING:
    from exporter.storage.archive import Archive


def open_source(source: str, *, from_file: str | None = None) -> "Storage | Archive":
    """Return what `source` is; an archive is only recognised, not read.

    Raises:
        SourceError: It is neither a registry's storage nor an archive.
        UsageError: Two things are to be read from stdin.
    """
    if source == STDIN and from_file == STDIN:
        raise UsageError("SOURCE and --from-file cannot both be read from stdin")
    if source != STDIN and (os.path.isdir(source) or not os.path.exists(source)):
        return Storage.open(source)
    from exporter.storage.archive import Archive

    return Archive(source)


@contextmanager
def readable(source: "Storage | Archive", *, digests: bool = False) -> Iterator[Storage]:
    """Give a source for a command that only reads: of an archive, the links and manifests.

    Args:
        source: What `open_source` returned.
        digests: Hash every blob of an archive, so that the storage knows which are damaged.
    """
    if isinstance(source, Storage):
        yield source
        return
    import tempfile

    from exporter.storage.archive_tree import ArchiveTree

    with tempfile.TemporaryDirectory(prefix="skopeo-dir-") as directory:
        try:
            tree = ArchiveTree(source, directory)
            tree.scan(digests=digests)
        except OSError as error:
            raise files.failure(error, directory) from None
        try:
            yield tree.storage(sizes=True)
        except SourceError:
            source.raise_damage()  # which explains the rest
            raise


@contextmanager
def linkable(
    source: "Storage | Archive",
    out: str,
    selection: Selection,
    observe: Observer,
    *,
    untagged: bool = False,
    mode: LinkMode = LinkMode.AUTO,
) -> Iterator[Storage]:
    """Give a source whose files can be linked into OUT.

    Raises:
        UsageError: Symbolic links would point to what is removed afterwards.
    """
    if isinstance(source, Storage):
        yield source
        return
    if mode is LinkMode.SYMLINK:
        raise UsageError("--link-mode symlink needs a directory, and SOURCE is an archive")
    from exporter.unpack import unpacked

    with unpacked(source, out, selection=selection, untagged=untagged, observe=observe) as storage:
        yield storage


def is_damaged(source: "Storage | Archive") -> bool:
    """Tell if what was read of an archive so far was damaged: there may be more in it than seen."""
    return not isinstance(source, Storage) and bool(source.damage)


def exit_code(source: "Storage | Archive", *, failed: bool) -> int:
    """Return how a command ends that has printed its results.

    Raises:
        SourceError: The archive is damaged: that is never a success, whatever was whole in it.
    """
    if not isinstance(source, Storage):
        source.raise_damage()
    return EXIT_SOME_FAILED if failed else EXIT_OK
