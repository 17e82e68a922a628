"""Measures `skopeo-dir push` against its rivals, everything in turn in one run.

    scripts/bench.py push [--rounds N] [--only plan|uploads|again|ratios]...

Each row has a real docker-registry of its own, started on an empty directory; the delay proxy is
ours (tests/fault_proxy.py: every request waits a round-trip time). Blob-info caches start empty.
Rows are ratios of wall times measured in turn, medians over the rounds; only compare such.
"""

import argparse
import os
import random
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qs, urlsplit

from exporter.schedule import Job, Schedule
from tests.builders import StorageBuilder
from tests.fault_proxy import fault_proxy
from tests.registry import Registry, serve, skopeo_environment

_JOBS = 8
_PLANNED = 100_000
_BASES = 7
_BASE_LAYERS = 6
_OWN_LAYERS = 2
_REPOSITORIES = 20
_MEMORY = Path("/dev/shm")  # where the network is measured, no disk may be


class _Failed(SystemExit):
    """A push that did not succeed, so it is no measurement."""


class Bench:
    """Makes registries and exports once, and times commands against fresh destinations."""

    def __init__(self, work: Path, rounds: int) -> None:
        self._work = work
        self._rounds = rounds
        self._serial = 0

    def export(self, images: int) -> tuple[Path, Path]:
        """Return the storage and the exported OUT of that many images over 20 repositories."""
        return self._exported(f"images-{images}", lambda root: _build(root, images))

    def many(self, images: int) -> tuple[Path, Path]:
        """Return the same for tiny images."""
        return self._exported(f"tiny-{images}", lambda root: StorageBuilder(root).many(images, 250))

    def _exported(self, name: str, build: Callable[[Path], None]) -> tuple[Path, Path]:
        source, out = self._work / name, self._work / f"{name}.out"
        if not out.exists():
            build(source)
            _check(["export", str(source), str(out)], self.environment())
        return source, out

    def environment(self) -> dict[str, str]:
        """Return an environment whose blob-info cache is empty."""
        self._serial += 1
        home = self._work / f"cache-{self._serial}"
        home.mkdir()
        return skopeo_environment(home)

    @contextmanager
    def destination(self, *, memory: bool) -> Iterator[Registry]:
        """Serve an empty directory, on tmpfs or on the file system of the work directory."""
        where = _MEMORY if memory else self._work
        with (
            tempfile.TemporaryDirectory(dir=where, prefix="bench-push-") as root,
            serve(Path(root)) as registry,
        ):
            yield registry

    def seconds(
        self, way: Callable[[Path, str], list[str]], out: Path, *, delay_seconds: float | None
    ) -> tuple[float, int]:
        """Return the wall time of pushing OUT, and the blobs uploaded.

        Args:
            way: Gives the command for an OUT and a host.
            out: What is pushed.
            delay_seconds: Round-trip time; None is loopback, with the destination on disk.
        """
        with ExitStack() as stack:
            registry = stack.enter_context(self.destination(memory=delay_seconds is not None))
            host = registry.host
            if delay_seconds is not None:
                host = stack.enter_context(
                    fault_proxy(registry.host, delay_seconds=delay_seconds)
                ).host
            environment = self.environment()
            os.sync()
            started = time.monotonic()
            result = subprocess.run(
                way(out, host), env=environment, capture_output=True, text=True, check=False
            )
            seconds = time.monotonic() - started
            if result.returncode != 0:
                raise _Failed(f"{way.__name__}: exit {result.returncode}\n{result.stderr[-3000:]}")
            return seconds, len(_uploads(registry))

    def ratio(self, row: "Row") -> None:
        """Print how many times longer the rival takes."""
        _, out = self.export(row.images)
        rows: list[tuple[float, float, float, int, int]] = []
        failures = 0
        while len(rows) < self._rounds:
            try:
                theirs, sent = self.seconds(row.rival, out, delay_seconds=row.delay_seconds)
            except _Failed:  # docker-registry then and now answers blind pushes with 500
                failures += 1
                if failures > self._rounds:
                    raise
                continue
            mine, own = self.seconds(row.ours, out, delay_seconds=row.delay_seconds)
            rows.append((theirs / mine, theirs, mine, sent, own))
        ratio, theirs, mine, sent, own = map(statistics.median, zip(*rows, strict=True))
        _row(
            row.name,
            f"{ratio:.2f}",
            f"at least {row.must}",
            ratio >= row.must,
            f"{theirs:.1f} s, {sent:.0f} uploads / {mine:.1f} s, {own:.0f} uploads"
            + (f"; not counted: {failures} of the rival that failed" if failures else ""),
        )


Way = Callable[[Path, str], list[str]]
"""Gives the command that pushes an OUT to a host."""


class Row(NamedTuple):
    """One ratio: how many times longer the rival takes than we do."""

    name: str
    must: float
    rival: Way
    ours: Way
    images: int
    delay_seconds: float | None


def ours(jobs: int) -> Way:
    """Return the way of `skopeo-dir push -j jobs`."""

    def push(out: Path, host: str) -> list[str]:
        return _ours(["push", str(out), host, "--dest-tls-verify=false", "-j", str(jobs)])

    return push


def sync(out: Path, host: str) -> list[str]:
    """Return the command of skopeo's own way."""
    return [
        *("skopeo", "--insecure-policy", "sync", "--all", "--preserve-digests", "--scoped"),
        *("--dest-tls-verify=false", "--src", "dir", "--dest", "docker", str(out), host),
    ]


def blind(out: Path, host: str) -> list[str]:
    """Return the command of eight skopeo processes that know nothing of each other."""
    copy = (
        "skopeo --insecure-policy copy --quiet --all --preserve-digests --dest-tls-verify=false "
        f'"dir:{out}/$1" "docker://{host}/$1"'
    )
    find = "find . -name manifest.json -printf '%h\\n' | sed 's|^./||' | sort"
    return ["sh", "-c", f"cd '{out}' && {find} | xargs -P 8 -n 1 sh -c '{copy}' copy"]


def uploads(bench: Bench) -> None:
    """Every layer once; and once over two runs if the cache is lost and the first is killed."""
    source, out = bench.export(200)
    unique = _layers(source)
    name = "layer blobs uploaded / unique, -j 8, 200 images"
    with bench.destination(memory=True) as registry:
        environment = bench.environment()
        _check(ours(_JOBS)(out, registry.host)[3:], environment)
        sent = [digest for digest in _uploads(registry) if digest in unique]
    figure = f"{len(sent) / len(unique):.3f}"
    _row(name, figure, "1.00", len(sent) == len(unique), f"{len(sent)} / {len(unique)}")

    with bench.destination(memory=True) as registry:
        first = subprocess.Popen(
            ours(_JOBS)(out, registry.host), env=bench.environment(), stderr=subprocess.DEVNULL
        )
        while len(_manifests(registry)) < 100:
            time.sleep(0.05)
        first.send_signal(signal.SIGKILL)
        first.wait()
        _check(ours(_JOBS)(out, registry.host)[3:], bench.environment())
        sent = [digest for digest in _uploads(registry) if digest in unique]
    _row(
        "the same, killed half-way, resumed without the cache",
        f"{len(sent) / len(unique):.3f}",
        "1.00, in-flight ones aside",
        len(sent) <= len(unique) + _JOBS,
        f"{len(sent)} / {len(unique)}, {len(sent) - len(set(sent))} sent twice",
    )


def again(bench: Bench) -> None:
    """A finished push of 5,000 images, once more: the registry serves the very source."""
    source, out = bench.many(5000)
    with serve(source) as registry:
        started = time.monotonic()
        _check(ours(_JOBS)(out, registry.host)[3:], bench.environment())
        seconds = time.monotonic() - started
        asked = registry.requests()
    other = [request for request in asked if request.method != "HEAD" and request.path != "/v2/"]
    _row(
        "re-run of a finished push of 5,000 images",
        f"{len(other)} / {seconds:.1f} s",
        "0 / at most 15 s",
        not other and seconds <= 15,
        f"{len(asked)} requests",
    )


def ratios(bench: Bench) -> None:
    """Wall times."""
    for row in (
        Row("sync / ours -j 8, 60 images, 40 ms", 6, sync, ours(_JOBS), 60, 0.040),
        Row("sync / ours -j 8, 60 images, 10 ms", 3, sync, ours(_JOBS), 60, 0.010),
        Row("blind xargs -P 8 / ours -j 8, 60 images, 40 ms", 1.25, blind, ours(_JOBS), 60, 0.040),
        Row("sync / ours -j 8, 200 images, loopback, ext4", 1.5, sync, ours(_JOBS), 200, None),
        Row("sync / ours -j 1, 200 images, loopback, ext4", 1.0, sync, ours(1), 200, None),
    ):
        bench.ratio(row)


def plan(_: Bench) -> None:
    """What it costs to decide the order of 100,000 images of 11 blobs each, of which 6 are shared.

    In a process of its own: the memory is the most that it had, less what it began with.
    """
    program = f"from scripts.bench_push import plan_images; plan_images({_PLANNED})"
    root = Path(__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=root, check=True, capture_output=True, text=True
    )
    seconds, megabytes = map(float, done.stdout.split())
    _row(
        f"schedule of {_PLANNED:,} images, all of them started",
        f"{seconds:.1f} s",
        "at most 5 s and 300 MB",
        seconds <= 5 and megabytes <= 300,
        f"{megabytes:.0f} MB",
    )


def plan_images(images: int) -> None:
    """Work off a schedule with 8 workers, and print its wall seconds and megabytes of memory."""
    before = _peak_megabytes()
    started = time.monotonic()
    shared, own = 6 * 40, 5
    jobs = [
        Job(
            blobs=[
                *range(number % 40 * 6, number % 40 * 6 + 6),
                *range(shared + own * number, shared + own * (number + 1)),
            ],
            project=number % 50,
        )
        for number in range(images)
    ]
    schedule = Schedule(jobs, [1000] * (shared + own * images), jobs_per_project=4)
    running: deque[int] = deque()
    while not schedule.done:
        while len(running) < _JOBS and (image := schedule.next()) is not None:
            running.append(image)
        schedule.succeed(running.popleft())
    print(time.monotonic() - started, _peak_megabytes() - before)


def _peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _build(root: Path, images: int) -> None:
    """Store images over 20 repositories; each repository is built on one of seven bases."""
    builder = StorageBuilder(root)
    for number in range(images):
        turn = number % _REPOSITORIES
        layers = [_noise(f"base {turn % _BASES} {n}", 200_000) for n in range(_BASE_LAYERS)]
        layers += [_noise(f"own {number} {n}", 50_000) for n in range(_OWN_LAYERS)]
        builder.image(f"team{turn % 5}/app{turn}", f"v{number // _REPOSITORIES}", layers)


def _noise(seed: str, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


def _layers(source: Path) -> set[str]:
    """Return the digests of all layers: every blob that is large."""
    blobs = source.glob("docker/registry/v2/blobs/sha256/*/*/data")
    return {f"sha256:{blob.parent.name}" for blob in blobs if blob.stat().st_size >= 50_000}


def _uploads(registry: Registry) -> list[str]:
    """Return the digest of every upload that was finished."""
    return [
        parse_qs(urlsplit(request.path).query)["digest"][0]
        for request in registry.requests()
        if request.method == "PUT" and "/blobs/uploads/" in request.path and request.status == 201
    ]


def _manifests(registry: Registry) -> list[str]:
    return [r.path for r in registry.requests() if r.method == "PUT" and "/manifests/" in r.path]


def _ours(arguments: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "exporter", *arguments]


def _check(arguments: Sequence[str], environment: dict[str, str]) -> None:
    subprocess.run(_ours(arguments), env=environment, check=True, capture_output=True)


def _row(name: str, figure: str, must: str, is_met: bool, detail: str) -> None:  # noqa: FBT001
    busy = f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    verdict = "ok" if is_met else "MISSED"
    print(f"{name:<53} {figure:>11}   {must:<26} {verdict:<6}   {detail}; {busy}", flush=True)


PARTS = {"plan": plan, "uploads": uploads, "again": again, "ratios": ratios}


def main(arguments: Sequence[str]) -> None:
    """Measure what was asked for, and print a line for each figure."""
    parser = argparse.ArgumentParser("bench.py push", description="Measure `skopeo-dir push`.")
    parser.add_argument("--rounds", type=int, default=3, help="of each ratio; medians are shown")
    parser.add_argument("--only", choices=PARTS, action="append", help="repeatable; default: all")
    asked = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="bench-push-") as work:
        bench = Bench(Path(work), asked.rounds)
        for part in asked.only or PARTS:
            PARTS[part](bench)
