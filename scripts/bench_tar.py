"""`export TAR OUT` against `tar -xf` and `sha256sum` one after the other, and a decompressor alone.

Run as `scripts/bench.py tar [MEGABYTES] [DIRECTORY]`. All contestants take turns in each round;
what counts is the ratio of medians. Prints one line for each, with peak memory and disk use.
"""

import multiprocessing
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tests.builders import StorageBuilder

ROUNDS = 3
LAYER = 25_000_000
DECOMPRESSORS = {"zst": ("zstd", "-q"), "gz": ("gzip", "-1")}


class Cost(NamedTuple):
    """What a process took: wall clock and peak resident bytes."""

    seconds: float
    memory: int


def main(arguments: list[str]) -> None:
    """Make the archives, run the rounds and print the ratios."""
    megabytes = int(arguments[0]) if arguments else 2000
    parent = arguments[1] if len(arguments) > 1 else None
    with tempfile.TemporaryDirectory(prefix="bench-tar-", dir=parent) as name:
        work = Path(name)
        # A process of its own: what a parent has resident counts as its children's peak.
        maker = multiprocessing.Process(
            target=_registry, args=(work / "registry", megabytes * 1_000_000)
        )
        maker.start()
        maker.join()
        unique = sum(path.stat().st_size for path in (work / "registry").rglob("data"))
        plain = work / "registry.tar"
        subprocess.run(["tar", "-cf", plain, "-C", work / "registry", "."], check=True)
        shutil.rmtree(work / "registry")
        for suffix, (program, level) in DECOMPRESSORS.items():
            with open(f"{plain}.{suffix}", "wb") as file:
                subprocess.run([program, level, "-c", plain], stdout=file, check=True)
        _plain(work, plain, unique)
        for suffix, (program, _) in DECOMPRESSORS.items():
            _compressed(work, Path(f"{plain}.{suffix}"), program)
        _sparse(work)


def _registry(root: Path, size: int) -> None:
    """Fill a registry with incompressible layers."""
    builder, generator = StorageBuilder(root), random.Random(1)
    for number in range(max(1, size // LAYER // 4)):
        layers = [generator.randbytes(LAYER) for _ in range(4)]
        builder.image(f"team/app{number}", "v1", layers)


def _plain(work: Path, archive: Path, unique: int) -> None:
    used = 0

    def theirs() -> Cost:
        tree = work / "tree"
        tree.mkdir()
        return _run(["sh", "-c", f"tar -xf {archive} -C {tree} && {_sums(tree)}"])

    def ours() -> Cost:
        nonlocal used
        cost = _export(archive, work / "out")
        used = max(used, _disk_use(work / "out"))
        return cost

    rival, own = _rounds(work, theirs, ours)
    _report("tar -xf, then sha256sum", rival, rival)
    _report("export registry.tar", own, rival)
    print(f"disk used / unique blobs: {used / unique:.3f}")


def _compressed(work: Path, archive: Path, program: str) -> None:
    rival, own = _rounds(
        work,
        lambda: _run(["sh", "-c", f"{program} -dc {archive} > /dev/null"]),
        lambda: _export(archive, work / "out"),
    )
    _report(f"{program} -dc alone", rival, rival)
    _report(f"export {archive.name}", own, rival)


def _sparse(work: Path) -> None:
    """Time `list` of an archive of 10 GB whose blobs are holes."""
    builder = StorageBuilder(work / "small")
    for number in range(100):
        builder.image("app", f"v{number}", [b"%d" % number])
    archive = work / "sparse.tar"
    with tempfile.TemporaryDirectory(dir=work) as name:
        for number in range(100):
            digest = f"{number:064x}"
            blob = Path(name) / f"docker/registry/v2/blobs/sha256/{digest[:2]}/{digest}/data"
            blob.parent.mkdir(parents=True)
            blob.touch()
            os.truncate(blob, 100_000_000)
        # Written through a pipe, zeros become holes again.
        command = (
            f"tar -cf - -C {name} . -C {work}/small . | cp --sparse=always /dev/stdin {archive}"
        )
        subprocess.run(["sh", "-c", command], check=True)
    costs = [_run([*_command(), "list", "--names", str(archive)]) for _ in range(ROUNDS)]
    size = archive.stat().st_size
    print(f"list of a sparse archive of {size / 1e9:.1f} GB: {_median(costs):.2f} s")


def _rounds(work: Path, *contestants: Callable[[], Cost]) -> list[list[Cost]]:
    costs: list[list[Cost]] = [[] for _ in contestants]
    for _ in range(ROUNDS):
        for contestant, taken in zip(contestants, costs, strict=True):
            os.sync()
            taken.append(contestant())
            for left in ("tree", "out"):
                shutil.rmtree(work / left, ignore_errors=True)
    return costs


def _report(name: str, costs: list[Cost], rival: list[Cost]) -> None:
    memory = max(cost.memory for cost in costs) / 1e6
    ratio = _median(costs) / _median(rival)
    print(f"{name:28} {_median(costs):7.2f} s  {ratio:5.2f} x  {memory:6.0f} MB", flush=True)


def _median(costs: list[Cost]) -> float:
    return statistics.median(cost.seconds for cost in costs)


def _sums(tree: Path) -> str:
    return f"find {tree} -name data -exec sha256sum {{}} + > /dev/null"


def _export(archive: Path, out: Path) -> Cost:
    return _run([*_command(), "export", str(archive), str(out)])


def _command() -> list[str]:
    return [sys.executable, "-m", "exporter"]


def _run(command: list[str]) -> Cost:
    start = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"exit {process.returncode}: {command}")
    return Cost(time.monotonic() - start, usage.ru_maxrss * 1024)


def _disk_use(directory: Path) -> int:
    seen = {(s.st_ino, s.st_blocks) for s in (path.stat() for path in directory.rglob("*"))}
    return sum(blocks * 512 for _, blocks in seen)


if __name__ == "__main__":
    main(sys.argv[1:])
