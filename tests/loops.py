"""Real file systems in files, by loop mounts; root only."""

import ctypes
import fcntl
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_SHUTDOWN = 0x8004587D  # XFS_IOC_GOINGDOWN, EXT4_IOC_SHUTDOWN
_NO_LOG_FLUSH = 2


@contextmanager
def made(root: Path, kind: str, *options: str, megabytes: int) -> Iterator[Path]:
    """Give the image of a new file system, as `mkfs.KIND OPTIONS` makes it."""
    image = root / f"{kind}.img"
    image.touch()
    os.truncate(image, megabytes * 2**20)
    subprocess.run([f"mkfs.{kind}", "-q", *options, image], check=True, capture_output=True)
    try:
        yield image
    finally:
        image.unlink()


@contextmanager
def mounted(image: Path, at: Path) -> Iterator[Path]:
    """Mount an image at a directory for as long as the context lasts."""
    at.mkdir(exist_ok=True)
    subprocess.run(["mount", "-o", "loop", image, at], check=True)
    try:
        yield at
    finally:
        subprocess.run(["umount", at], check=True)


def cut_power(root: Path) -> None:
    """Stop a file system as a power cut would: what is not on the disk yet is lost.

    Spec: linux, fs/xfs/libxfs/xfs_fs.h, XFS_FSOP_GOING_FLAGS_NOLOGFLUSH; ext4 has the same.
    """
    descriptor = os.open(root, os.O_RDONLY)
    try:
        fcntl.ioctl(descriptor, _SHUTDOWN, ctypes.c_uint32(_NO_LOG_FLUSH))
    finally:
        os.close(descriptor)
