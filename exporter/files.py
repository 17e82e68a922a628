"""Files of our own: atomic writes, the lock on OUT, durability."""

import ctypes
import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple, Self

from exporter.errors import LockedError, NoSpaceError, SkopeoDirError, UsageError

_SPACE = {
    errno.ENOSPC: "no space or no inodes left",
    errno.EDQUOT: "the disk quota is exhausted",
}
_REMEDIES = {
    errno.EROFS: "remount the file system writable, or choose another OUT",
    errno.EACCES: "run as root, or as the owner of OUT and of the registry's storage",
    errno.EPERM: "lsattr shows whether it is immutable (+i)",
    errno.EIO: "the disk or its connection fails: look at dmesg before you run it again",
    errno.ENAMETOOLONG: "choose an OUT with a shorter path",
    errno.EXDEV: "OUT must be a single file system, without mounts below it",
}


def failure(error: OSError, path: str) -> SkopeoDirError:
    """Return what an `OSError` while writing below `path` means to the user."""
    if error.errno in _SPACE:
        return NoSpaceError(
            f"{path}: {_SPACE[error.errno]}",
            hint="free some and run the same command again: it goes on where it stopped",
        )
    return UsageError(f"{path}: {error.strerror}", hint=_REMEDIES.get(error.errno or 0, ""))


class Room(NamedTuple):
    """What a file system has left.

    Attributes:
        size: Bytes.
        inodes: Files and directories; None if it makes them as they are needed (btrfs).
        block: Bytes by which it gives them out; a directory takes one at least.
    """

    size: int
    inodes: int | None
    block: int

    @classmethod
    def of(cls, path: str) -> Self:
        """Return what is left, for this user, on the file system of `path`.

        Raises:
            OSError: It cannot say.
        """
        found = os.statvfs(path)
        is_root = os.geteuid() == 0
        blocks = found.f_bfree if is_root else found.f_bavail
        inodes = found.f_ffree if is_root else found.f_favail
        return cls(blocks * found.f_frsize, inodes if found.f_files else None, found.f_frsize)

    def require(self, path: str, *, size: int, inodes: int | None, hint: str) -> None:
        """Refuse what cannot fit, before anything is written.

        Raises:
            NoSpaceError: There is less.
        """
        if size > self.size:
            raise NoSpaceError(f"{path} needs {size} bytes and has {self.size}", hint=hint)
        if inodes is not None and self.inodes is not None and inodes > self.inodes:
            raise NoSpaceError(f"{path} needs {inodes} inodes and has {self.inodes}", hint=hint)


def directory_descriptor(path: str) -> int:
    """Return a descriptor of a directory from which others can be named.

    Raises:
        OSError: It is no directory, or this user must not enter it.
    """
    return os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def write_atomically(path: str, content: bytes) -> None:
    """Replace the file at `path` by `content`: after a crash it has the old or the new bytes.

    Raises:
        OSError: It cannot be written.
    """
    temporary = f"{path}.new"
    with open(temporary, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.rename(temporary, path)


def sync(path: str) -> None:
    """Make everything below `path` survive a power cut: one `syncfs` of its file system.

    One call for the run instead of an fsync for each directory: thousands of times cheaper.

    Raises:
        OSError: The file system reports that something could not be written.

    Spec: syncfs(2), Linux 2.6.39; errors since 5.8.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if libc.syncfs(descriptor) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), path)
    finally:
        os.close(descriptor)


@contextmanager
def locked(path: str) -> Iterator[None]:
    """Hold the lock file at `path`; the kernel frees it when the process ends, however it ends.

    Raises:
        LockedError: Another process holds it; the message names that process.
        SkopeoDirError: The file cannot be made.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise failure(error, path) from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 200, 0).decode("utf-8", "replace").strip()
            raise LockedError(
                f"{os.path.dirname(path)} is in use by {holder or 'another process'}",
                hint="wait for it, or end it; a lock of a killed process is free at once",
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {os.uname().nodename}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)
