"""An archive that may hold a registry's storage: a file, or a stream on stdin."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from exporter.errors import SourceError, UsageError
from exporter.storage.compression import Piped, PlainFile, Stream, recognise
from exporter.storage.locate import STDIN
from exporter.storage.tar import BLOCK, is_header

_BUFFER = 32 * 1024  # as much as is read for a header whose content is skipped
_SHOWN = 3  # of the things that are wrong with an archive


class Archive:
    """A file or stream that may hold a registry's storage as tar, compressed or not.

    Attributes:
        name: What the user calls it.
        size: Length of the file in bytes; 0 for a stream.
        repeatable: It is a file, and so can be read again.
        plain: It is a file and not compressed, so passing over content costs nothing.
        damage: Sentences about all that was wrong with it, in the order met.
    """

    def __init__(self, source: str) -> None:
        """Open the archive at the path `source`, or the one on stdin if that is `-`.

        Raises:
            SourceError: It cannot be read, or its first bytes are not those of an archive.
        """
        self.name = "stdin" if source == STDIN else source
        self.damage: dict[str, None] = {}
        self._path = source
        try:
            self._file = _opened(source)
            status = os.fstat(self._file.fileno())
            self._head = self._file.read(BLOCK)
        except OSError as error:
            raise SourceError(f"{self.name} cannot be read: {error.strerror}") from None
        self.repeatable = source != STDIN and stat.S_ISREG(status.st_mode)
        self.size = status.st_size if self.repeatable else 0
        self.plain = self.repeatable and not recognise(self._head)
        if self.repeatable:
            self._file.close()
        if not self._head:
            raise SourceError(f"{self.name} is empty")
        if not (recognise(self._head) or is_header(self._head)):
            raise SourceError(
                f"{self.name} is not a registry: neither a directory nor a tar archive",
                hint="archives may be plain or compressed by gzip, xz, zstd or bzip2",
            )

    @contextmanager
    def stream(self) -> Iterator[Stream]:
        """Give its bytes from the start; more than once only if it is repeatable."""
        if self.plain:
            with open(self._path, "rb", buffering=_BUFFER) as file:
                yield PlainFile(file, self.size)
            return
        piped = Piped(_opened(self._path)) if self.repeatable else Piped(self._file, self._head)
        try:
            yield piped
        finally:
            piped.close()

    def raise_damage(self) -> None:
        """Raise what is wrong with the archive, if anything is.

        Raises:
            SourceError: It is damaged.
        """
        if self.damage:
            more = len(self.damage) - _SHOWN
            shown = "; ".join(list(self.damage)[:_SHOWN]) + (f"; and {more} more" * (more > 0))
            raise SourceError(
                f"{self.name} is damaged: {shown}",
                hint="all that is whole in it was used; get another copy of it and run this again",
            )


def _opened(source: str) -> BinaryIO:
    if source == STDIN:
        if os.isatty(0):
            raise UsageError("stdin is a terminal", hint="pipe an archive into it, or name one")
        return os.fdopen(0, "rb", closefd=False)
    if not stat.S_ISFIFO(mode := os.stat(source).st_mode) and not stat.S_ISREG(mode):
        raise SourceError(f"{source} is neither a directory nor a file nor a pipe")
    return open(source, "rb", buffering=_BUFFER)
