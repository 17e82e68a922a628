"""Hard links, and what to say when the kernel refuses one.

The hard-link law: a file that may be a hard link is the registry's own inode. It is never opened
for writing, and never the object of chmod, chown, utime or truncate. Link and unlink only.
"""

import errno
import os

from exporter.errors import NoSpaceError, SkopeoDirError, UsageError

_OTHER_FILE_SYSTEM = (
    "OUT must be on the same file system and the same mount as the registry's storage; "
    "choose an OUT beside the storage directory"
)
# What link(2) says: the sentence for the user, and what can be done.
_REFUSALS: dict[int, tuple[str, str]] = {
    errno.EXDEV: ("they are on different file systems or mounts", _OTHER_FILE_SYSTEM),
    errno.EPERM: (
        "the kernel does not allow this user to link the registry's files",
        "run as root or the storage's owner (sysctl fs.protected_hardlinks); lsattr shows +i files",
    ),
    errno.EACCES: ("permission denied", "run as root or as the owner of the storage"),
    errno.EROFS: ("the file system is mounted read-only", "remount it writable"),
    errno.EMLINK: (
        "a file has as many hard links as its file system allows",
        "export fewer tags into one OUT with --include",
    ),
    errno.EOPNOTSUPP: ("the file system has no hard links", _OTHER_FILE_SYSTEM),
    errno.EOVERFLOW: (
        "the owner of the registry's files is unknown in this user namespace",
        "run outside the container",
    ),
}


def refusal(error: OSError, source: str, out: str) -> SkopeoDirError:
    """Return what a refused hard link from `source` into the directory `out` means to the user."""
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return NoSpaceError(
            f"{out}: no space or no inodes left",
            hint="free some and run the same command again: it goes on where it stopped",
        )
    reason, hint = _REFUSALS.get(error.errno or 0, (error.strerror or "unknown error", ""))
    return UsageError(f"cannot hard-link {source} into {out}: {reason}", hint=hint)


def try_link(source: str, directory: str) -> None:
    """Link `source` into `directory` once and unlink it again: the only sure test.

    Two mounts of one file system have the same device number and still refuse (EXDEV).

    Raises:
        SkopeoDirError: The link was refused; the error says why and what to do.
    """
    trial = f"{directory}/trial-{os.getpid()}"
    try:
        os.link(source, trial)
        os.unlink(trial)
    except OSError as error:
        raise refusal(error, source, directory) from None
