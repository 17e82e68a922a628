"""A strict reader of tar archives: every member once, in order, and no damage goes unsaid.

`tarfile` ends without a word at a damaged header or a cut, ignores an archive that follows another
and reads headers of any size into memory; so the few hundred bytes of format are read here.

Spec: POSIX.1-2017, pax, "ustar Interchange Format" and "pax Header Block"; GNU tar manual,
"Basic Tar Format" and "Storing Sparse Files".
"""

import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum, auto
from typing import NamedTuple

from exporter.storage.compression import CHUNK, Stream

BLOCK = 512
MAX_EXTENDED = 1024 * 1024
"""Largest extended header in bytes. Real ones hold a name and perhaps a 64 KiB attribute."""

_ZERO = bytes(BLOCK)
_HEADER = struct.Struct("100s 24x 12s 12x 8s c 100s 6s 82x 155s 12x")
_MAGIC = slice(257, 262)
_RECORD = re.compile(rb"([1-9][0-9]{0,6}) ")
_IS_EXTENDED, _MORE_EXTENDED = 482, 504  # offsets of GNU's "another block of the sparse map"


class Kind(Enum):
    """What a member is, as far as it matters here."""

    FILE = auto()
    DIRECTORY = auto()
    HARD_LINK = auto()
    SPARSE = auto()
    """A file of which only the parts with data are stored, in one of the ways of GNU tar."""
    OTHER = auto()
    """A symbolic link, device, FIFO, or something of a vendor's own."""


_KINDS = {
    **dict.fromkeys((b"0", b"\0", b"7"), Kind.FILE),
    b"1": Kind.HARD_LINK,
    b"5": Kind.DIRECTORY,
    b"S": Kind.SPARSE,
}


@dataclass(frozen=True, slots=True)
class Member:
    """One member of an archive.

    Attributes:
        name: As stored. Never a path to write to.
        kind: What it is.
        size: Bytes of content that follow in the archive.
        target: What a hard link is another name of; empty otherwise.
    """

    name: str
    kind: Kind
    size: int
    target: str = ""


class _HeaderError(Exception):
    """A block is no header."""


class TarReader:
    """Reads an archive from front to back. Not thread-safe.

    After damage it searches for the next header that belongs to what is wanted, since a layer may
    be an uncompressed tar itself, whose headers are as valid as the archive's own.

    Args:
        stream: The archive, decompressed.
        belongs: Tells by its name whether a member is one that is wanted.

    Attributes:
        damage: One sentence for everything that was wrong so far; the same archive gives the same.
        cut_member: Name of the member in whose content the archive ends; empty if in none.
    """

    def __init__(self, stream: Stream, belongs: Callable[[str], bool]) -> None:
        self._stream = stream
        self._belongs = belongs
        self._position = 0
        self._left = 0
        self._padding = 0
        self._cut = False
        self.damage: list[str] = []
        self.cut_member = ""

    def __iter__(self) -> Iterator[Member]:
        """Yield the members; what is not read of a member's content is skipped."""
        zeros, lost = 0, False
        while block := self._block():
            if block == _ZERO:
                zeros += 1
                continue
            if lost and block[_MAGIC] != b"ustar":
                continue  # most of what is searched, and a checksum takes twenty times as long
            at = self._position - BLOCK
            if zeros and not lost:
                self.damage.append(
                    f"something follows the end of the archive at byte {at}"
                    if zeros > 1
                    else f"there is a lone block of zeros before byte {at}"
                )
            try:
                member = self._member(block)
            except _HeaderError as error:
                if not lost:
                    self.damage.append(f"the header at byte {at} is damaged: {error}")
                zeros, lost = 0, True
                continue
            if lost and not self._belongs(member.name):
                continue  # its content is searched, too
            zeros, lost = 0, False
            self._left, self._padding = member.size, -member.size % BLOCK
            yield member
            self._finish(member)
        if self._stream.problem:
            self.damage.append(self._stream.problem)
        elif self._cut:
            self.damage.append(f"it is cut off at byte {self._position}")
        elif zeros < 2:
            self.damage.append("its end is missing: there are no two blocks of zeros")

    def some(self, size: int = CHUNK) -> bytes:
        """Return 1 to `size` bytes of the content of the member that was yielded last.

        None at its end, and when the archive ends before.
        """
        return self._took(self._stream.some(min(self._left, size)) if self._left else b"")

    def read(self, size: int) -> bytes:
        """Return `size` bytes of that content, fewer only at its end or the archive's."""
        return self._took(self._stream.read(min(self._left, size)))

    @property
    def is_complete(self) -> bool:
        """True if all content of the member that was yielded last has been read."""
        return not self._left

    def _took(self, piece: bytes) -> bytes:
        self._position += len(piece)
        self._left -= len(piece)
        return piece

    def _finish(self, member: Member) -> None:
        rest = self._left + self._padding
        skipped = self._stream.skip(rest)
        self._position += skipped
        self._cut = skipped < rest
        if skipped < self._left:
            self.cut_member = member.name
        self._left = self._padding = 0

    def _block(self) -> bytes:
        """Return the next 512 bytes, or none at the end or when the archive is cut."""
        block = b"" if self._cut else self._stream.read(BLOCK)
        self._position += len(block)
        if 0 < len(block) < BLOCK:
            self._cut = True
            return b""
        return block

    def _member(self, block: bytes) -> Member:
        """Return the member whose first header block is `block`.

        Raises:
            _HeaderError: The block, or an extended header that it starts, is malformed.
        """
        extended: dict[bytes, bytes] = {}
        header = _parse(block)
        while header.flag in b"xLK":
            if header.flag in extended:
                raise _HeaderError("two extended headers of one kind in a row")
            extended[header.flag] = self._extended(header.size)
            block = self._block()
            if not block or block == _ZERO:
                raise _HeaderError("an extended header without a member")
            header = _parse(block)
        if header.flag == b"S":
            self._skip_sparse_map(block)
        name, target, size, kind = header.name, header.target, header.size, header.kind
        if extended:
            name, target = _text(extended.get(b"L", name)), _text(extended.get(b"K", target))
            records = _records(extended.get(b"x", b""))
            name = records.get(b"GNU.sparse.name", records.get(b"path", name))
            target = records.get(b"linkpath", target)
            size = _decimal(records[b"size"]) if b"size" in records else size
            if any(key.startswith(b"GNU.sparse.") for key in records):
                kind = Kind.SPARSE
        if kind is Kind.FILE and name.endswith(b"/"):
            kind = Kind.DIRECTORY  # v7 has no other mark of one
        return Member(
            name.decode("utf-8", "surrogateescape"),
            kind,
            # Nothing follows a link, device, directory or FIFO, whatever its header says.
            0 if header.flag in b"123456" and kind is not Kind.SPARSE else size,
            target.decode("utf-8", "surrogateescape") if kind is Kind.HARD_LINK else "",
        )

    def _extended(self, size: int) -> bytes:
        if size > MAX_EXTENDED:
            raise _HeaderError(f"an extended header of {size} bytes")
        content = self._stream.read(size + -size % BLOCK)
        self._position += len(content)
        return content[:size]

    def _skip_sparse_map(self, block: bytes) -> None:
        more = block[_IS_EXTENDED]
        while more:
            block = self._block()
            if not block:
                raise _HeaderError("a sparse file without its map")
            more = block[_MORE_EXTENDED]


class _Header(NamedTuple):
    """What one block says; of a name that is too long for it, the beginning."""

    name: bytes
    size: int
    flag: bytes
    kind: Kind
    target: bytes


def _parse(block: bytes) -> _Header:
    name, size, checksum, flag, target, magic, prefix = _HEADER.unpack(block)
    if _checksum(block) != _octal(checksum):
        raise _HeaderError("its checksum is wrong")
    name = _text(name)
    if magic == b"ustar\0" and prefix[0]:
        name = _text(prefix) + b"/" + name
    return _Header(name, _number(size), flag, _KINDS.get(flag, Kind.OTHER), _text(target))


def is_header(block: bytes) -> bool:
    """Tell if an archive may start with this block: a header of any age, even if damaged."""
    if block[_MAGIC] == b"ustar" or not block.strip(b"\0"):
        return True
    try:
        return len(block) == BLOCK and _octal(block[148:156]) == _checksum(block)
    except _HeaderError:
        return False


def _checksum(block: bytes) -> int:
    return sum(block) - sum(block[148:156]) + 8 * 0x20  # its own field counts as spaces


def _text(field: bytes) -> bytes:
    return field.partition(b"\0")[0]


def _octal(field: bytes) -> int:
    digits = field.strip(b" \0")
    if digits.isdigit():  # int() alone would take signs, underscores and 0o
        try:
            return int(digits, 8)
        except ValueError:
            pass
    raise _HeaderError("a field that should be a number is none")


def _number(field: bytes) -> int:
    """Return a size: octal, or GNU's base 256 when its first bit is set."""
    if field[0] == 0x80:
        value = int.from_bytes(field[1:], "big")
        if value >= 1 << 63:
            raise _HeaderError("a size beyond 8 EiB")
        return value
    return _octal(field) if field.strip(b" \0") else 0


def _decimal(value: bytes) -> int:
    if re.fullmatch(rb"[0-9]{1,18}", value) is None:
        raise _HeaderError("a size that is no number")
    return int(value)


def _records(content: bytes) -> dict[bytes, bytes]:
    """Return the records of a pax header: `<length> <key>=<value>` and a newline, each."""
    records: dict[bytes, bytes] = {}
    start = 0
    while start < len(content):
        length = _RECORD.match(content, start)
        end = start + int(length[1]) if length else 0
        record = content[length.end() : end] if length else b""
        key, equals, value = record[:-1].partition(b"=")
        if end > len(content) or not record.endswith(b"\n") or not equals:
            raise _HeaderError("a pax record is malformed")
        records[key] = value
        start = end
    return records
