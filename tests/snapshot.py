"""Proof that a tree was not touched."""

import hashlib
import os
import stat
from pathlib import Path
from typing import NamedTuple


class Entry(NamedTuple):
    """What may not change of a file, directory or symbolic link.

    Left out is what a hard link to a file, or reading it, changes by itself: link count, ctime
    and atime. The inode number is in: a file replaced by an equal one was touched.
    """

    inode: int
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    content: str


def snapshot(root: Path) -> dict[str, Entry]:
    """Return every entry at and below `root` by its path relative to `root` (itself is `.`).

    Symbolic links are not followed. `content` is the sha256 of a file, the target of a symbolic
    link, and empty for anything else.
    """
    paths = [str(root)]
    for directory, directories, files in os.walk(root):
        paths += [os.path.join(directory, name) for name in directories + files]
    return {os.path.relpath(path, root): _entry(path) for path in paths}


def _entry(path: str) -> Entry:
    found = os.lstat(path)
    content = ""
    if stat.S_ISREG(found.st_mode):
        with open(path, "rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
    elif stat.S_ISLNK(found.st_mode):
        content = os.readlink(path)
    return Entry(
        found.st_ino, found.st_mode, found.st_uid, found.st_gid, found.st_mtime_ns, content
    )
