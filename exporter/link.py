"""How a file of the registry comes into an image: hard link, reflink, copy or symbolic link.

The hard-link law: a file that may be a hard link is the registry's own inode. It is never opened
for writing, and never the object of chmod, chown, utime or truncate. Link and unlink only.

Where the registry's file cannot be linked itself, a *relay* is: a reflink or a copy of it in a
directory of ours, made once, of which every image gets a hard link. So a file is there as a whole
or not at all, and which inode is the right one is always known.
"""

import errno
import fcntl
import hashlib
import itertools
import os
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from io import FileIO

from exporter import files
from exporter.digest import Digest
from exporter.errors import SkopeoDirError, UsageError
from exporter.verdict import ProblemError, Verdict

_FICLONE = 0x40049409  # linux/fs.h: _IOW(0x94, 9, int)
_CHUNK = 1024 * 1024


class LinkMode(StrEnum):
    """How files come into an image."""

    AUTO = "auto"
    """Hard links; else reflinks. Copies only of files that have all the links that they can."""

    HARDLINK = "hardlink"
    """Hard links of the registry's own files, or nothing."""

    REFLINK = "reflink"
    """A reflink of every file, once: XFS and btrfs share its blocks until one side changes."""

    COPY = "copy"
    """A copy of every file, once, verified against its digest."""

    SYMLINK = "symlink"
    """Symbolic links: OUT is good for as long as the registry stays where it is."""


_OTHER_FILE_SYSTEM = (
    "OUT must be on the same file system and the same mount as the registry's storage; "
    "choose an OUT beside the storage directory, or --link-mode copy"
)
# What link(2) says: the sentence for the user, and what can be done.
_REFUSALS: dict[int, tuple[str, str]] = {
    errno.EXDEV: (
        "they are on different file systems or mounts (or subvolumes, or projects of a quota)",
        _OTHER_FILE_SYSTEM,
    ),
    errno.EPERM: (
        "the kernel does not allow this user to link the registry's files",
        "run as root or the storage's owner (sysctl fs.protected_hardlinks); lsattr shows +i files",
    ),
    errno.EACCES: ("permission denied", "run as root or as the owner of the storage"),
    errno.EROFS: ("the file system is mounted read-only", "remount it writable"),
    errno.EMLINK: (
        "a file has as many hard links as its file system allows",
        "--link-mode auto copies such a file once, and goes on with the copy",
    ),
    errno.EOPNOTSUPP: ("the file system has no such links", _OTHER_FILE_SYSTEM),
    errno.EOVERFLOW: (
        "the owner of the registry's files is unknown in this user namespace",
        "run outside the container",
    ),
    errno.EIO: ("input/output error", "the disk fails: look at dmesg before you run it again"),
    errno.ENAMETOOLONG: ("its path would be too long", "choose an OUT with a shorter path"),
}
_NO_REFLINK = {errno.EXDEV, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOTTY, errno.ENOSYS}
# Refusals after which another way may work.
_ANOTHER_WAY = {errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.EOVERFLOW}


def refusal(error: OSError, source: str, out: str) -> SkopeoDirError:
    """Return what a refused link from `source` into the directory `out` means to the user."""
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return files.failure(error, out)
    reason, hint = _REFUSALS.get(error.errno or 0, (error.strerror or "unknown error", ""))
    return UsageError(f"cannot link {source} into {out}: {reason}", hint=hint)


def choose(mode: LinkMode, source: str, directory: str) -> tuple[LinkMode, str]:
    """Return how to go on, and why, by trying it with one file: the only sure test.

    Two mounts of one file system have the same device number and still refuse (EXDEV).

    Args:
        mode: What was asked for.
        source: A file of the registry.
        directory: Where the trial is made, and removed.

    Raises:
        SkopeoDirError: It does not work; the error says why and what to do.
    """
    trial = f"{directory}/trial-{os.getpid()}"
    try:
        if mode in {LinkMode.AUTO, LinkMode.HARDLINK}:
            try:
                os.link(source, trial)
            except OSError as error:
                if error.errno == errno.EMLINK:
                    return mode, ""  # that is about this file, not about the two places
                if mode is LinkMode.HARDLINK or error.errno not in _ANOTHER_WAY:
                    raise
                if _clones(source, trial):
                    why = refusal(error, source, directory)
                    return LinkMode.REFLINK, f"--link-mode auto, without hard links: {why}"
                raise
        elif mode is LinkMode.REFLINK and not _clones(source, trial):
            raise UsageError(
                f"cannot reflink {source} into {directory}",
                hint="XFS and btrfs can, within one file system; or use --link-mode copy",
            )
        elif mode is LinkMode.SYMLINK:
            os.symlink(source, trial)
    except OSError as error:
        raise refusal(error, source, directory) from None
    finally:
        with suppress(FileNotFoundError):
            os.unlink(trial)
    return mode, ""


def _clones(source: str, trial: str) -> bool:
    with open(source, "rb", buffering=0) as original, open(trial, "wb", buffering=0) as clone:
        return _clone(original, clone)


def _clone(source: FileIO, target: FileIO) -> bool:
    """Let an empty file share all blocks of another; False if they cannot.

    Spec: ioctl_ficlone(2).
    """
    try:
        fcntl.ioctl(target.fileno(), _FICLONE, source.fileno())
    except OSError as error:
        if error.errno not in _NO_REFLINK:
            raise
        return False
    return True


@dataclass(slots=True)
class LinkCounts:
    """How many files came how: names made by hard or symbolic link, and relays made."""

    linked: int = 0
    reflinked: int = 0
    copied: int = 0
    symlinked: int = 0


class Links:
    """Puts files into images, and knows which of them are right. Safe in forks, not in threads.

    Attributes:
        counts: What was done so far.

    Args:
        mode: What `choose` returned.
        root: The directory from which the registry's files are named: the kernel walks a short
            path in less time than a long one.
        work: The directory from which the files to be made are named.
        relays: The directory of relays; only this class puts anything there.
    """

    def __init__(self, mode: LinkMode, *, root: str, work: str, relays: str) -> None:
        self.counts = LinkCounts()
        self._mode = mode
        self._links_originals = mode in {LinkMode.AUTO, LinkMode.HARDLINK}
        self._root = root
        self._root_descriptor = files.directory_descriptor(root)
        self._work_descriptor = files.directory_descriptor(work)
        self._relays = relays
        with os.scandir(relays) as entries:  # inode to digest of those that are whole
            self._relayed = {
                entry.inode(): entry.name.partition(".")[0]
                for entry in entries
                if not entry.name.endswith(".part")
            }

    def close(self) -> None:
        """Close the two directories."""
        os.close(self._root_descriptor)
        os.close(self._work_descriptor)

    def bytes_needed(self, digest: Digest, size: int) -> int | None:
        """Return how many bytes a file of that size will take, or None if it takes no inode."""
        relayed = self._mode in {LinkMode.REFLINK, LinkMode.COPY}
        if not relayed or os.path.exists(f"{self._relays}/{digest.hex}.0"):
            return None
        return size if self._mode is LinkMode.COPY else 0

    def put(self, source: str, digest: Digest, target: str) -> None:
        """Make `target` a name of the file `source`, whose content has `digest`, or of its relay.

        Raises:
            OSError: As the kernel says.
            ProblemError: The content has another digest: it was about to be copied.
        """
        refused = None
        if self._links_originals:
            try:
                os.link(
                    source,
                    target,
                    src_dir_fd=self._root_descriptor,
                    dst_dir_fd=self._work_descriptor,
                )
            except OSError as error:
                if self._mode is LinkMode.HARDLINK or error.errno not in _ANOTHER_WAY:
                    raise
                refused = error
            else:
                self.counts.linked += 1
                return
        if self._mode is LinkMode.SYMLINK:
            os.symlink(f"{self._root}/{source}", target, dir_fd=self._work_descriptor)
            self.counts.symlinked += 1
            return
        self._link_relay(source, digest, target, refused)

    def is_right(self, entry: "os.DirEntry[str]", path: str, inode: int, digest: Digest) -> bool:
        """Tell if a name in an image is what `put` would make it, without reading the file.

        Args:
            entry: The name.
            path: Of the registry's file, from `root`.
            inode: Of the registry's file.
            digest: Of its content.
        """
        if self._mode is LinkMode.SYMLINK:
            return entry.is_symlink() and os.readlink(entry.path) == f"{self._root}/{path}"
        # Overlayfs may list another inode number than it says of the file itself.
        return self._is_right(entry.inode(), inode, digest) or self._is_right(
            entry.stat(follow_symlinks=False).st_ino, inode, digest
        )

    def _is_right(self, found: int, inode: int, digest: Digest) -> bool:
        if found == inode and self._links_originals:
            return True
        return self._relayed.get(found) == digest.hex

    def _link_relay(
        self, source: str, digest: Digest, target: str, refused: OSError | None
    ) -> None:
        for number in itertools.count():  # a relay, too, has but so many links
            relay = f"{self._relays}/{digest.hex}.{number}"
            if not os.path.exists(relay):
                self._make_relay(source, digest, relay, refused)
            try:
                os.link(relay, target, dst_dir_fd=self._work_descriptor)
            except OSError as error:
                if error.errno != errno.EMLINK:
                    raise
            else:
                self.counts.linked += 1
                return

    def _make_relay(self, source: str, digest: Digest, relay: str, refused: OSError | None) -> None:
        """Make a relay, unless another process does so meanwhile."""
        part = f"{relay}.part"
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        with (
            open(f"{self._root}/{source}", "rb", buffering=0) as original,
            open(descriptor, "wb", buffering=0) as file,
        ):
            fcntl.flock(file, fcntl.LOCK_EX)
            if os.path.exists(relay):
                return
            file.truncate()
            if self._mode is not LinkMode.COPY and _clone(original, file):
                self.counts.reflinked += 1
            elif self._mode is LinkMode.COPY or (refused and refused.errno == errno.EMLINK):
                _copy(original, file, digest)
                self.counts.copied += 1
            else:
                raise refused or OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
            os.fsync(file.fileno())
            os.rename(part, relay)


def remove_unused_relays(relays: str) -> None:
    """Remove the relays of which no image has a link any more.

    Raises:
        OSError: One cannot be removed.
    """
    with os.scandir(relays) as entries:
        for entry in entries:
            if entry.name.endswith(".part") or entry.stat().st_nlink == 1:
                os.unlink(entry.path)


def _copy(source: FileIO, target: FileIO, digest: Digest) -> None:
    found = hashlib.new(digest.algorithm)
    while chunk := source.read(_CHUNK):
        found.update(chunk)
        rest = memoryview(chunk)
        while rest:
            rest = rest[target.write(rest) :]
    if found.hexdigest() != digest.hex:
        message = f"the blob {digest} is damaged: its bytes have another digest"
        raise ProblemError(Verdict.WRONG_DIGEST, source.name, message)
