"""Files of our own, and what the kernel's refusals mean."""

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from exporter import files
from exporter.errors import LockedError, NoSpaceError, SkopeoDirError, UsageError


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_file_system_is_exit_code_7_wherever_it_shows(number: int) -> None:
    error = OSError(number, os.strerror(number))
    assert isinstance(files.failure(error, "/out"), NoSpaceError)


def test_any_other_failure_to_write_names_the_path_and_the_reason() -> None:
    error = files.failure(OSError(errno.EROFS, "Read-only file system"), "/out")
    assert (type(error), error.message) == (UsageError, "/out: Read-only file system")


@pytest.mark.parametrize("name", ["EROFS", "EACCES", "EPERM", "EIO", "ENAMETOOLONG", "EXDEV"])
def test_a_failure_that_the_user_can_do_something_about_has_a_hint(name: str) -> None:
    number = getattr(errno, name)
    assert files.failure(OSError(number, os.strerror(number)), "/out").hint


def test_what_does_not_fit_is_exit_code_7_and_says_what_is_missing() -> None:
    room = files.Room(size=100, inodes=10, block=1)
    for size, inodes, what in ((101, 1, "101 bytes and has 100"), (1, 11, "11 inodes and has 10")):
        with pytest.raises(NoSpaceError, match=f"/out needs {what}"):
            room.require("/out", size=size, inodes=inodes, hint="")
    room.require("/out", size=100, inodes=10, hint="")


def test_a_file_system_that_makes_inodes_as_needed_has_enough() -> None:
    files.Room(size=100, inodes=None, block=1).require("/out", size=1, inodes=10**9, hint="")


def test_a_file_is_replaced_by_another_inode(tmp_path: Path) -> None:
    path, old = tmp_path / "file", tmp_path / "old"
    path.write_bytes(b"old")
    os.link(path, old)
    files.write_atomically(str(path), b"new")
    assert (path.read_bytes(), old.read_bytes()) == (b"new", b"old")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "old"]


def test_sync_takes_a_directory_and_nothing_else(tmp_path: Path) -> None:
    files.sync(str(tmp_path))
    with pytest.raises(FileNotFoundError):
        files.sync(str(tmp_path / "nothing"))


def test_a_lock_is_held_once_and_says_by_whom(tmp_path: Path) -> None:
    path = str(tmp_path / "lock")
    with files.locked(path), pytest.raises(LockedError) as caught, files.locked(path):
        pass
    holder = f"process {os.getpid()} on {os.uname().nodename}"
    assert caught.value.message == f"{tmp_path} is in use by {holder}"


def test_a_lock_is_free_after_its_block_even_by_an_error(tmp_path: Path) -> None:
    path = str(tmp_path / "lock")
    with pytest.raises(ZeroDivisionError), files.locked(path):
        raise ZeroDivisionError
    with files.locked(path):
        assert re.fullmatch(r"process \d+ on \S+\n", Path(path).read_text())


HOLD = """
import sys
from exporter import files
with files.locked(sys.argv[1]):
    print("locked", flush=True)
    sys.stdin.read()
"""


def test_the_lock_of_a_killed_process_is_free_at_once(tmp_path: Path) -> None:
    path = str(tmp_path / "lock")
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"locked\n"
        with pytest.raises(LockedError, match=f"process {process.pid} "), files.locked(path):
            pass
        process.kill()
        process.wait()
        with files.locked(path):
            pass


def test_a_lock_that_cannot_be_made_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(SkopeoDirError) as caught, files.locked(str(tmp_path)):
        pass
    assert caught.value.message == f"{tmp_path}: Is a directory"
