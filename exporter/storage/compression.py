"""Streams of bytes out of plain and compressed files, recognised by content, not by name.

A compressed stream is unpacked in a thread of its own (every library here releases the GIL while
it works), so that whoever reads it can hash and write on another processor. What it holds in
memory is bounded, whatever the stream says of itself.
"""

import bz2
import lzma
import queue
import re
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO, Protocol

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

CHUNK = 1024 * 1024
_PIECE = 64 * 1024  # what is unpacked at once, and so what is lost when a stream breaks in it
_QUEUED = 8  # chunks that are unpacked ahead
_PATIENCE_SECONDS = 0.5  # between two looks whether anybody still reads
_XZ_MEMORY = 100 * 1024 * 1024  # `xz -9` needs 65 MiB
_ERRORS = (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError, zstd.ZstdError)


class Stream(Protocol):
    """Bytes from front to back. The end, and anything that makes one, is a short read.

    Attributes:
        problem: Why it ended early, as a sentence; empty if it did not, or is still being read.
    """

    problem: str

    def read(self, size: int) -> bytes:
        """Return `size` bytes, fewer only at the end."""

    def some(self, size: int) -> bytes:
        """Return 1 to `size` bytes, as many as come cheap; none at the end."""

    def skip(self, size: int) -> int:
        """Pass over `size` bytes, fewer only at the end, and return how many."""


class _Decompressor(Protocol):
    """What bz2, lzma and zstd agree on. Spec: Python's documentation of `bz2.BZ2Decompressor`."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class _Gunzip:
    """Gives zlib's gzip decompressor, which also checks CRC and length, the others' interface."""

    def __init__(self) -> None:
        self._inflate = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
        self.needs_input = True

    @property
    def eof(self) -> bool:
        return self._inflate.eof

    @property
    def unused_data(self) -> bytes:
        return self._inflate.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        output = self._inflate.decompress(self._inflate.unconsumed_tail + data, max_length)
        # The checksum comes last: as long as zlib has output, it leaves it, or has not got it yet.
        self.needs_input = not self._inflate.unconsumed_tail
        return output


def _unxz() -> lzma.LZMADecompressor:
    return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY)


_MAGIC = {
    "gzip": re.compile(rb"\x1f\x8b"),
    "xz": re.compile(rb"\xfd7zXZ\0"),
    "zstd": re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18"),  # pzstd: skippable frames
    "bzip2": re.compile(rb"BZh"),
}
_DECOMPRESSORS: dict[str, Callable[[], _Decompressor]] = {
    "gzip": _Gunzip,
    "xz": _unxz,
    "zstd": zstd.ZstdDecompressor,
    "bzip2": bz2.BZ2Decompressor,
}


def recognise(head: bytes) -> str:
    """Return `gzip`, `xz`, `zstd` or `bzip2` if the first bytes of a file say so, else nothing."""
    return next((name for name, magic in _MAGIC.items() if magic.match(head)), "")


class PlainFile:
    """A file that can be sought in: skipping costs nothing. Closing the file is up to the caller.

    Args:
        file: Opened with a small buffer: each header that is not skipped to fills it.
        size: Its length in bytes.
    """

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._size = size
        self._position = 0
        self.problem = ""

    def read(self, size: int) -> bytes:
        """See `Stream`."""
        try:
            content = self._file.read(size)
        except OSError as error:
            self.problem = f"it cannot be read at byte {self._position}: {error.strerror}"
            return b""
        self._position += len(content)
        return content

    def some(self, size: int) -> bytes:
        """See `Stream`."""
        return self.read(size)

    def skip(self, size: int) -> int:
        """See `Stream`."""
        skipped = max(0, min(size, self._size - self._position))
        self._position += skipped
        self._file.seek(self._position)
        return skipped


class Piped:
    """A stream that a thread reads, and unpacks if it is compressed. It owns the file.

    Args:
        file: From where it stands on.
        head: Bytes that were read from the file before.
    """

    def __init__(self, file: BinaryIO, head: bytes = b"") -> None:
        self.problem = ""
        self._chunks: queue.Queue[bytes] = queue.Queue(_QUEUED)
        self._chunk = b""
        self._offset = 0
        self._ended = False
        self._closed = False
        # A daemon: nothing can wake it while it waits for a pipe that nobody writes to.
        threading.Thread(target=self._unpack, args=(file, head), daemon=True).start()

    def read(self, size: int) -> bytes:
        """See `Stream`."""
        content = self.some(size)
        while len(content) < size:
            more = self.some(size - len(content))
            if not more:
                break
            content += more
        return content

    def some(self, size: int) -> bytes:
        """See `Stream`."""
        if self._offset == len(self._chunk):
            self._chunk = b"" if self._ended else self._chunks.get()
            self._offset = 0
            self._ended = not self._chunk
        content = self._chunk[self._offset : self._offset + size]
        self._offset += len(content)
        return content

    def skip(self, size: int) -> int:
        """See `Stream`."""
        left = size
        while left and (content := self.some(min(left, CHUNK))):
            left -= len(content)
        return size - left

    def close(self) -> None:
        """Let the thread end; it closes the file.

        The queue is left alone: a signal handler that raised in the midst of a `get` may have left
        its lock taken, and whoever asks it anything then waits for ever.
        """
        self._closed = True

    def _put(self, chunk: bytes) -> None:
        while not self._closed:
            try:
                self._chunks.put(chunk, timeout=_PATIENCE_SECONDS)
            except queue.Full:
                continue
            return

    def _unpack(self, file: BinaryIO, head: bytes) -> None:
        chunk: list[bytes] = []
        size = 0
        try:
            with file:
                head = head or file.read(_PIECE)
                compression = recognise(head)
                for piece in _decompressed(file, head) if compression else _plain(file, head):
                    chunk.append(piece)
                    size += len(piece)
                    if size >= CHUNK:
                        self._put(b"".join(chunk))
                        chunk, size = [], 0
                    if self._closed:
                        return
        except _ERRORS as error:
            self.problem = f"the stream is damaged: {error}"
        finally:
            if size:
                self._put(b"".join(chunk))
            self._put(b"")


def _plain(file: BinaryIO, head: bytes) -> Iterator[bytes]:
    chunk = head
    while chunk:
        yield chunk
        chunk = file.read(CHUNK)


def _decompressed(file: BinaryIO, data: bytes) -> Iterator[bytes]:
    """Yield what a file unpacks to: any number of streams, one after the other.

    Raises:
        EOFError: It ends before a stream does, or something follows that is no stream.
    """
    name = recognise(data)
    while data:
        decompressor = _DECOMPRESSORS[name]()
        while not decompressor.eof:
            if decompressor.needs_input and not data:
                data = file.read(_PIECE)
                if not data:
                    raise EOFError(f"the {name} stream ends early")
            yield decompressor.decompress(data, _PIECE)
            data = b""
        data = decompressor.unused_data.lstrip(b"\0")  # padding of xz, and of tapes
        while not data and (more := file.read(_PIECE)):
            data = more.lstrip(b"\0")
        if data and len(data) < _PIECE:
            data += file.read(_PIECE)
        if data and recognise(data) != name:
            raise EOFError(f"something follows the end of the {name} stream")
