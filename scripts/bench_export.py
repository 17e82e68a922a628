"""`export` and `list` against `cp -al`, the usual shell loop, and a bare interpreter.

Run as `scripts/bench.py export [TAGS] [ROUNDS]`; as root if the figures on ext4 are wanted, too.
The registry has TAGS (5,000) tags over a tenth as many repositories, 11 blobs each, in memory
(/dev/shm). Each contestant is a whole process and takes its turn in each round; what counts is the
ratio of medians.
"""

import contextlib
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests import loops
from tests.builders import StorageBuilder

Command = Sequence[str | Path]
OURS = [str(Path(sys.executable).with_name("skopeo-dir"))]

# What is usually written for this job: every digest of a manifest is taken to be a blob.
SHELL_LOOP = r"""
cd "$1/docker/registry/v2"
find repositories -path '*/_manifests/tags/*/current/link' | while read -r link; do
  name=${link#repositories/}; repository=${name%%/_manifests/*}
  tag=${name#*/_manifests/tags/}; tag=${tag%%/*}
  digest=$(cat "$link"); hex=${digest#sha256:}
  image="$2/$repository:$tag"; mkdir -p "$image"
  manifest="blobs/sha256/$(echo "$hex" | cut -c1-2)/$hex/data"
  ln "$manifest" "$image/manifest.json"
  grep -o 'sha256:[0-9a-f]\{64\}' "$manifest" | sort -u | while read -r blob; do
    hex=${blob#sha256:}
    ln "blobs/sha256/$(echo "$hex" | cut -c1-2)/$hex/data" "$image/$hex"
  done
  echo 'Directory Transport Version: 1.1' >"$image/version"
done
"""


def main(arguments: list[str]) -> None:
    """Measure everything and print a table in Markdown."""
    tags = int(arguments[0]) if arguments else 5000
    rounds = int(arguments[1]) if len(arguments) > 1 else 5
    load = os.getloadavg()[0]
    python = f"{platform.python_version()} ({platform.python_compiler()})"
    print(
        f"{tags} tags, {rounds} rounds, {os.cpu_count()} processors, load {load:.1f} before, "
        f"Python {python}\n"
    )
    print("| figure | measured | must | aim |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="bench-", dir="/dev/shm") as name:
        work = Path(name)
        StorageBuilder(work / "registry").many(tags, tags // 10)
        _in_memory(work, rounds)
        _system_calls(work)
        _growth(work, tags)
    if os.geteuid() == 0:
        _on_ext4(tags, rounds)


def _in_memory(work: Path, rounds: int) -> None:
    registry, out, copy = work / "registry", work / "out", work / "copy"
    times = Times()
    for _ in range(rounds):
        for path in (out, copy):
            shutil.rmtree(path, ignore_errors=True)
        times.run("export", [*OURS, "export", registry, out])
        times.run("again", [*OURS, "export", registry, out])
        times.run("cp", ["cp", "-al", out, copy])
        times.run("bare", [sys.executable, "-c", "pass"])
        times.run("names", [*OURS, "list", "--names", registry])
        times.run("json", [*OURS, "list", "--json", registry])
    shutil.rmtree(copy)
    times.run("shell", ["sh", "-c", SHELL_LOOP, "sh", registry, copy])
    shutil.rmtree(copy)
    row("export / `cp -al` of the finished tree", times.ratio("export", "cp"), "1.2", "0.9")
    row("shell loop / export", times.ratio("shell", "export"), "100", "200")
    for name, must, aim in (("names", "0.5", "0.3"), ("json", "1.0", "0.6")):
        over = times.median(name) - times.median("bare")
        row(f"`list --{name}` over a bare `python -c pass`", f"{over:.2f} s", must, aim)
    row("second export, nothing to do / first", times.ratio("again", "export"), "0.5", "0.3")


def _system_calls(work: Path) -> None:
    out = work / "traced"
    counts = work / "counts"
    command: Command = ["strace", "-f", "-c", "-o", counts, *OURS, "export", work / "registry", out]
    subprocess.run(command, check=True, capture_output=True)
    rows = [line.split() for line in counts.read_text().splitlines()]
    calls = {
        fields[-1]: int(fields[3]) for fields in rows if len(fields) > 4 and fields[3].isdigit()
    }
    links = calls.get("link", 0) + calls.get("linkat", 0)
    total = sum(count for name, count in calls.items() if name != "total")
    row(f"system calls / hard link ({links} links)", f"{total / links:.2f}", "2.5", "1.9")
    shutil.rmtree(out)


def _growth(work: Path, tags: int) -> None:
    """Ten times as many tags: time in turn with the smaller registry, and memory."""
    large = work / "large"
    StorageBuilder(large).many(10 * tags, tags)
    times = Times()
    for _ in range(3):
        for name, registry in (("small", work / "registry"), ("large", large)):
            out = work / "grown"
            times.run(name, [*OURS, "export", registry, out])
            shutil.rmtree(out)
    row(f"{10 * tags} tags / {tags} tags", times.ratio("large", "small"), "11", "10")
    command: Command = [*OURS, "export", large, work / "grown"]
    peak, private = _peak_memory(command)
    row(f"peak memory of the largest process at {10 * tags} tags", f"{peak} MB", "200", "120")
    row("the same, all processes added up, what they share once", f"{private} MB", "200", "120")


def _peak_memory(command: Command) -> tuple[int, int]:
    """Return the peak resident set of the largest process, and of all by PSS, in MB.

    Not what wait4 says: that counts this process, too, which the command was forked from.
    """
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    peaks, sums = [0], [0]
    while process.poll() is None:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        with contextlib.suppress(OSError):
            pids = [str(process.pid), *children.read_text().split()]
            peaks += [_kilobytes(f"/proc/{pid}/status", "VmHWM") for pid in pids]
            sums.append(sum(_kilobytes(f"/proc/{pid}/smaps_rollup", "Pss") for pid in pids))
        time.sleep(0.02)
    if process.returncode != 0:
        raise SystemExit(f"exit {process.returncode}: {command}")
    return max(peaks) * 1024 // 10**6, max(sums) * 1024 // 10**6


def _kilobytes(path: str, name: str) -> int:
    with contextlib.suppress(OSError):
        found = re.search(rf"^{name}:\s+(\d+) kB", Path(path).read_text(), re.MULTILINE)
        return int(found[1]) if found else 0
    return 0


def _on_ext4(tags: int, rounds: int) -> None:
    """On a file system of its own, in turn; `cp` does not sync, so it is also measured with."""
    times = Times()
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        work = Path(name)
        with (
            loops.made(work, "ext4", "-N", str(60 * tags), megabytes=tags) as image,
            loops.mounted(image, work / "disk") as disk,
        ):
            registry, out, copy = disk / "registry", disk / "out", disk / "copy"
            StorageBuilder(registry).many(tags, tags // 10)
            for _ in range(rounds):
                for path in (out, copy):
                    shutil.rmtree(path, ignore_errors=True)
                os.sync()
                times.run("export", [*OURS, "export", registry, out])
                os.sync()
                times.run("cp", ["sh", "-c", 'cp -al "$1" "$2"', "sh", out, copy])
                started = time.monotonic()
                subprocess.run(["sync", "-f", disk], check=True)
                times.add("sync", time.monotonic() - started + times.last("cp"))
    row("on ext4, export (which syncs) / `cp -al`", times.ratio("export", "cp"), "1.3", "0.9")
    row("on ext4, export / `cp -al` and `sync -f`", times.ratio("export", "sync"), "", "")


class Times:
    """Wall clock of each contestant, round by round."""

    def __init__(self) -> None:
        self._seconds: dict[str, list[float]] = {}

    def run(self, name: str, command: Command) -> None:
        """Run a command and take its time."""
        began = time.monotonic()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.add(name, time.monotonic() - began)

    def add(self, name: str, seconds: float) -> None:
        """Take note of a time."""
        self._seconds.setdefault(name, []).append(seconds)

    def last(self, name: str) -> float:
        """Return the time that was added last."""
        return self._seconds[name][-1]

    def median(self, name: str) -> float:
        """Return the median in seconds."""
        return statistics.median(self._seconds[name])

    def ratio(self, name: str, rival: str) -> str:
        """Return the ratio of two medians, and both."""
        ours, theirs = self.median(name), self.median(rival)
        return f"{ours / theirs:.2f} ({ours:.2f} s / {theirs:.2f} s)"


def row(figure: str, measured: str, must: str, aim: str) -> None:
    """Print a row of the table at once: the whole takes minutes."""
    print(f"| {figure} | {measured} | {must} | {aim} |", flush=True)
