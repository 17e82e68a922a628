"""Faults at every change that an export makes: killed there, or refused by the kernel there.

A small OUT is brought up to date: an image moves, one comes, one goes. strace makes the N-th call
of one kind fail, or kills the process there, for N from 1 until the run completes. With two
processes, N counts in each of them.
"""

import itertools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from exporter import dirlayout
from exporter.export import export
from exporter.storage import Storage
from tests.builders import StorageBuilder
from tests.snapshot import snapshot

pytestmark = pytest.mark.slow

CHANGES = ["link", "mkdir", "rename", "unlink", "rmdir", "write", "fsync", "syncfs"]
ERRORS = ["EMLINK", "ENOSPC", "EIO", "EACCES", "EPERM", "EXDEV", "EDQUOT"]
PROGRAM = """
import sys
from exporter import dirlayout, files
from exporter.errors import SkopeoDirError
from exporter.export import export
from exporter.storage import Storage
source, out, processes = sys.argv[1:]
try:
    dirlayout.prepare(out)
    with files.locked(dirlayout.lock_file(out)):
        summary = export(Storage.open(source), out, delete=True, processes=int(processes))
except SkopeoDirError as error:
    print("error:", error.message, file=sys.stderr)
    sys.exit(error.exit_code)
sys.exit(summary.failed > 0)
"""


class Rig:
    """A registry that has changed since an export, and OUTs that do not know it yet."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._outs = itertools.count()
        self.registry = StorageBuilder(root / "registry")
        moved = self.registry.image("a", "moves", [b"new", b"shared"])
        self.registry.image("a", "moves", [b"old", b"shared"])
        self.registry.image("a", "goes", [b"goes", b"shared"])
        dirlayout.prepare(str(root / "first"))
        self.finish(root / "first")
        self.registry.link("a", "_manifests/tags/moves/current", moved)
        self.registry.image("b/c", "comes", [b"comes", b"shared"])
        shutil.rmtree(self.registry.v2 / "repositories/a/_manifests/tags/goes")
        self.source = snapshot(self.registry.root)
        self.before = self.tree(root / "first")
        whole = self.out()
        self.finish(whole)
        self.after = self.tree(whole)

    def out(self) -> Path:
        """Return another OUT as the first export left it."""
        out = self._root / f"out{next(self._outs)}"
        return Path(shutil.copytree(self._root / "first", out, copy_function=os.link))

    def tree(self, out: Path) -> dict[str, dict[str, int]]:
        """Return name and inode of every file of every directory that looks like an image.

        A relay counts as the file that it stands for: what it holds is looked at.
        """
        originals = [*self.registry.v2.rglob("data"), self._root / "first/.skopeo-dir/version"]
        by_content = {path.read_bytes(): path.stat().st_ino for path in originals}
        relays = {
            path.stat().st_ino: by_content[path.read_bytes()]
            for path in (out / ".skopeo-dir/relay").iterdir()
            if path.suffix != ".part"
        }
        found: dict[str, dict[str, int]] = {}
        for directory, directories, files in os.walk(out):
            if dirlayout.WORK in directories:
                directories.remove(dirlayout.WORK)
            name = os.path.relpath(directory, out)
            if ":" in name:
                inodes = {file: os.stat(f"{directory}/{file}").st_ino for file in files}
                found[name] = {file: relays.get(inode, inode) for file, inode in inodes.items()}
        return found

    def finish(self, out: Path) -> None:
        """Export once more, undisturbed."""
        summary = export(Storage(str(self.registry.v2)), str(out), delete=True)
        assert summary.failed == 0

    def run(
        self, out: Path, processes: int, call: str, fault: str
    ) -> tuple[subprocess.CompletedProcess[str], bool]:
        """Export under strace; tell also if the fault has happened."""
        kind = f"/^{call}(at|at2)?$"  # which one it is depends on the machine
        log = self._root / "log"
        strace = ["strace", "-f", "-o", str(log), "-e", f"trace={kind}", "-e"]
        arguments = [str(self.registry.root), str(out), str(processes)]
        done = subprocess.run(
            [*strace, f"inject={kind}:{fault}", sys.executable, "-c", PROGRAM, *arguments],
            env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert "Traceback" not in done.stderr
        told = log.read_text()
        return done, "INJECTED" in told or "killed by SIGKILL" in told

    def assert_whole(self, out: Path) -> None:
        """No image is anything but what it was or what it shall be; nor is the source."""
        for name, files in self.tree(out).items():
            assert files in (self.before.get(name), self.after.get(name)), name
        assert snapshot(self.registry.root) == self.source

    def assert_finishes(self, out: Path) -> None:
        """Another run makes of OUT what an undisturbed one would have, and leaves nothing."""
        self.finish(out)
        assert self.tree(out) == self.after
        work = out / dirlayout.WORK
        left = [path for name in ("building", "relay") for path in (work / name).iterdir()]
        # A relay that an image has is part of the result.
        assert [path for path in left if path.stat().st_nlink == 1 or path.is_dir()] == []
        assert {str(name) for name in dirlayout.read_record(str(out))} == set(self.after)


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    """In memory: thousands of small changes, each of them synced."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as root:
        yield Rig(Path(root))


@pytest.mark.parametrize(
    ("call", "processes"),
    [*itertools.product(CHANGES, [1, 2]), ("sendto", 2), ("clone", 2), ("wait4", 2)],
)
def test_a_run_killed_at_any_change_leaves_whole_images_and_the_next_one_finishes(
    rig: Rig, call: str, processes: int
) -> None:
    codes: list[int] = []
    hit = True
    while hit:
        out = rig.out()
        done, hit = rig.run(out, processes, call, f"signal=KILL:when={len(codes) + 1}")
        rig.assert_whole(out)
        rig.assert_finishes(out)
        codes.append(done.returncode)
    assert codes[-1] == 0
    assert set(codes[:-1]) in ({2}, {-signal.SIGKILL}, {2, -signal.SIGKILL})


@pytest.mark.parametrize(
    ("call", "error", "processes"),
    [*itertools.product(CHANGES, ERRORS, [1]), ("link", "ENOSPC", 2), ("rename", "EIO", 2)],
)
def test_a_change_that_is_refused_is_a_clear_end_or_a_failed_image(
    rig: Rig, call: str, error: str, processes: int
) -> None:
    codes: list[int] = []
    hit = True
    while hit:
        out = rig.out()
        done, hit = rig.run(out, processes, call, f"error={error}:when={len(codes) + 1}")
        rig.assert_whole(out)
        rig.assert_finishes(out)
        codes.append(done.returncode)
        assert (codes[-1] in {2, 7}) == done.stderr.startswith("error: "), done.stderr
    assert (len(codes) > 1, codes[-1], set(codes) <= {0, 1, 2, 7}) == (True, 0, True)
