"""What a push promises, with the real skopeo and registry: retries, resuming, signals, results."""

import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path

import orjson
import pytest

from exporter.digest import Digest
from exporter.distribution import Client
from exporter.events import Event, Failed, Pushed
from exporter.outcome import PushSummary
from exporter.pace import Pace
from exporter.push import push
from exporter.reference import Destination
from exporter.retry import Retry
from exporter.shipment import Shipment
from exporter.skopeo import Finished, Options, Processes, Skopeo, Turn
from tests.builders import StorageBuilder
from tests.fault_proxy import Cut, Fault, Hang, Refuse, Reset, fault_proxy
from tests.registry import Registry, serve, skopeo_environment
from tests.snapshot import snapshot

PLAIN = "--dest-tls-verify=false"
HASTY = Retry(first_seconds=0.05)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give every test an empty blob-info cache."""
    for name, value in skopeo_environment(tmp_path / "cache").items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def destination(tmp_path: Path) -> Iterator[Registry]:
    with serve(tmp_path / "destination") as registry:
        yield registry


def start(*arguments: str | Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "exporter", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(*arguments: str | Path, code: int = 0) -> str:
    """Run skopeo-dir and return its stdout."""
    process = start(*arguments)
    stdout, stderr = process.communicate()
    assert "Traceback" not in stderr
    assert process.returncode == code, stderr
    return stdout


def build(root: Path, images: int, *, repositories: int = 4, shared: int = 2) -> StorageBuilder:
    """Store images that share `shared` layers across repositories, and have one of their own."""
    builder = StorageBuilder(root)
    for number in range(images):
        layers = [b"shared %d" % layer * 100 for layer in range(shared)]
        layers.append(b"own %d" % number * 100)
        turn = number % repositories
        builder.image(f"team{turn % 2}/app{turn}", f"v{number // repositories}", layers)
    return builder


def exported(tmp_path: Path, images: int = 8, **options: int) -> Path:
    build(tmp_path / "source", images, **options)
    run("export", tmp_path / "source", tmp_path / "out")
    return tmp_path / "out"


def names(out: Path) -> list[str]:
    return sorted(str(path.parent.relative_to(out)) for path in out.rglob("manifest.json"))


def rows(text: str, message_type: str) -> list[dict[str, object]]:
    lines = [orjson.loads(line) for line in text.splitlines()]
    return [line for line in lines if line["message_type"] == message_type]


def results(out: Path) -> list[dict[str, object]]:
    files = sorted(out.glob(".skopeo-dir/results-*.jsonl"), key=os.path.getmtime)
    return [orjson.loads(line) for line in files[-1].read_text().splitlines()]


Around = Callable[[Sequence[str], Callable[[], Finished]], Finished]
"""Is given every command that copies an image, and what runs it."""


class Gauge:
    """An `Around` that counts how many copies run at a time, in all or by project."""

    def __init__(self, *, by_project: bool = False) -> None:
        self.starts: list[int] = []  # how many ran, at each start of a copy
        self.most: Counter[str] = Counter()
        self._by_project = by_project
        self._running: Counter[str] = Counter()
        self._lock = threading.Lock()

    def __call__(self, command: Sequence[str], copy: Callable[[], Finished]) -> Finished:
        project = command[-1].split("/")[3] if self._by_project else "all"
        with self._lock:
            self._running[project] += 1
            self.starts.append(self._running[project])
            self.most[project] = max(self.most[project], self._running[project])
        try:
            return copy()
        finally:
            with self._lock:
                self._running[project] -= 1


def pushed_here(
    out: Path,
    host: str,
    *,
    pace: Pace | None = None,
    options: Options | None = None,
    around: Around = lambda _command, copy: copy(),
    timeout_seconds: float = 60.0,
) -> tuple[PushSummary, dict[str, Pushed | Failed], list[Event]]:
    """Push within this process, hastily; return the summary, the end of each image, all events."""
    processes = Processes()
    events: list[Event] = []

    def run(
        command: Sequence[str],
        *,
        listen: Callable[[str], None] | None = None,
        environment: Mapping[str, str] | None = None,
        turn: Turn | None = None,
    ) -> Finished:
        def copy() -> Finished:
            return processes.run(command, listen=listen, environment=environment, turn=turn)

        return around(command, copy) if command[-1].startswith("docker://") else copy()

    with Client(host, tls_verify=False, timeout_seconds=timeout_seconds) as client:
        summary = push(
            Shipment.of_out(str(out), Destination.parse(host)),
            client=client,
            skopeo=Skopeo.probe(options=options or Options(dest_tls_verify=False), run=run),
            stop=processes.stop,
            pace=pace or Pace(retry=HASTY),
            observe=events.append,
        )
    ends = {event.name: event for event in events if isinstance(event, Pushed | Failed)}
    return summary, ends, events


# --- retries: one image for each fault, all pushed in one run

KINDS = ("head-manifest", "head-blob", "post", "patch", "put-blob", "put-manifest")
TEMPORARY: dict[str, Fault] = {
    "500": Refuse(500),
    "502": Refuse(502),
    "503": Refuse(503),
    "504": Refuse(504),
    "429": Refuse(429, code="TOOMANYREQUESTS"),
    "429-asking": Refuse(429, code="TOOMANYREQUESTS", retry_after="1"),
    "reset": Reset(),
    "reset-late": Reset(forward=True),
    "cut": Cut(),
}
PERMANENT = {
    "400": Refuse(400, code="MANIFEST_INVALID"),
    "401": Refuse(401, code="UNAUTHORIZED"),
    "403": Refuse(403, code="DENIED"),
    "404": Refuse(404, code="NAME_UNKNOWN"),
    "412": Refuse(412, code="PRECONDITION"),
    "413": Refuse(413, code="SIZE_INVALID"),
}


def kind_of(method: str, path: str) -> str:
    if "/manifests/" in path:
        return f"{method.lower()}-manifest"
    return {"HEAD": "head-blob", "PUT": "put-blob"}.get(method, method.lower())


class Faults:
    """Fails requests of the kind and in the way that a repository's name says: `kind/fault`.

    Attributes:
        seen: How many requests of its kind each repository got.
    """

    def __init__(self, faults: Mapping[str, Fault], *, times: int) -> None:
        self._faults = faults
        self._times = times
        self.seen: Counter[str] = Counter()

    def __call__(self, method: str, path: str, _count: int) -> Fault | None:
        repository = "/".join(path.split("/")[2:4])
        kind, _, fault = repository.partition("/")
        if fault not in self._faults or kind_of(method, path) != kind:
            return None
        self.seen[repository] += 1
        return self._faults[fault] if self.seen[repository] <= self._times else None


def one_for_each(tmp_path: Path, faults: Sequence[str], *, healthy: int = 0) -> Path:
    builder = StorageBuilder(tmp_path / "source")
    wanted = [f"{kind}/{fault}" for kind in KINDS for fault in faults]
    for name in [*wanted, *(f"healthy/app{number}" for number in range(healthy))]:
        builder.image(name, "v1", [name.encode() * 50])
    run("export", tmp_path / "source", tmp_path / "out")
    return tmp_path / "out"


@pytest.mark.slow
def test_whatever_fails_twice_for_a_passing_reason_arrives(
    tmp_path: Path, destination: Registry
) -> None:
    out = one_for_each(tmp_path, list(TEMPORARY))
    rule = Faults(TEMPORARY, times=2)
    with fault_proxy(destination.host, rule=rule) as proxy:
        summary, ends, _ = pushed_here(out, proxy.host)
    assert {name: end for name, end in ends.items() if isinstance(end, Failed)} == {}
    assert summary.images == len(KINDS) * len(TEMPORARY)
    assert len(rule.seen) == summary.images  # every fault was met
    # Refused requests end a try, except where skopeo itself waits and asks again (429).
    hard = [end.tries for name, end in ends.items() if "/50" in name]
    assert hard == [3] * len(hard)


@pytest.mark.slow
def test_what_hangs_twice_arrives_after_the_time_out(tmp_path: Path, destination: Registry) -> None:
    out = one_for_each(tmp_path, ["hang"])
    rule = Faults({"hang": Hang()}, times=2)
    options = Options(dest_tls_verify=False, command_timeout="5s")
    with fault_proxy(destination.host, rule=rule) as proxy:
        _, ends, _ = pushed_here(out, proxy.host, options=options, timeout_seconds=2.0)
    assert {name: end.tries for name, end in ends.items()} == {
        f"{kind}/hang:v1": 3 for kind in KINDS
    }
    assert {type(end) for end in ends.values()} == {Pushed}


def test_what_is_refused_for_good_is_tried_once_and_named_and_the_others_arrive(
    tmp_path: Path, destination: Registry
) -> None:
    out = one_for_each(tmp_path, list(PERMANENT), healthy=6)
    rule = Faults(PERMANENT, times=1000)
    with fault_proxy(destination.host, rule=rule) as proxy:
        _, ends, _ = pushed_here(out, proxy.host)
    arrived = {name for name, end in ends.items() if isinstance(end, Pushed)}
    # A HEAD that is answered by 404 says that there is nothing yet, and is no refusal.
    assert arrived == {"head-manifest/404:v1", "head-blob/404:v1"} | {
        f"healthy/app{number}:v1" for number in range(6)
    }
    failed = {name: end for name, end in ends.items() if isinstance(end, Failed)}
    assert {end.error for end in failed.values()} == {"permanent"}
    assert {name: end.tries for name, end in failed.items()} == dict.fromkeys(failed, 1)
    refused = {f"{name}:v1": count for name, count in rule.seen.items()}
    assert {name: refused[name] for name in failed} == dict.fromkeys(failed, 1)


def test_a_push_whose_last_answer_was_lost_is_not_sent_again(
    tmp_path: Path, destination: Registry
) -> None:
    out = exported(tmp_path, 1)

    def lose(method: str, path: str, count: int) -> Fault | None:
        return Reset(forward=True) if method == "PUT" and "/manifests/" in path else None

    with fault_proxy(destination.host, rule=lose) as proxy:
        summary, _, _ = pushed_here(out, proxy.host)
    assert summary.images == 1
    puts = [r for r in destination.requests() if r.method == "PUT" and "/manifests/" in r.path]
    assert len(puts) == 1


def test_what_skopeo_waits_for_by_itself_slows_the_others_down(
    tmp_path: Path, destination: Registry
) -> None:
    out = exported(tmp_path, 24, shared=0)
    asked: list[str] = []
    gauge = Gauge()

    def ask_too_much(method: str, path: str, count: int) -> Fault | None:
        if kind_of(method, path) == "head-blob" and len(asked) < 8:
            asked.append(path)
            return Refuse(429, code="TOOMANYREQUESTS", retry_after="1")
        return None

    with fault_proxy(destination.host, rule=ask_too_much) as proxy:
        _, ends, _ = pushed_here(out, proxy.host, around=gauge)
    assert {end.tries for end in ends.values()} == {1}
    assert gauge.starts[:9] == [1, 2, 3, 4, 5, 6, 7, 8, 9], "one of them is made ready"
    assert max(gauge.starts[9:12]) <= 4


# --- every blob once


def uploads(registry: Registry) -> Counter[str]:
    done = (r for r in registry.requests() if r.method == "PUT" and "/blobs/uploads/" in r.path)
    return Counter(r.path.partition("digest=")[2].replace("%3A", ":") for r in done)


def test_a_shared_layer_is_free_as_soon_as_it_is_sent_and_stays_so_if_its_image_fails(
    tmp_path: Path, destination: Registry
) -> None:
    builder = StorageBuilder(tmp_path / "source")
    builder.image("first/app", "v1", [b"shared" * 1000, b"own" * 10])
    builder.image("second/app", "v1", [b"shared" * 1000])
    run("export", tmp_path / "source", tmp_path / "out")
    hung: list[str] = []

    def hang(method: str, path: str, count: int) -> Fault | None:
        # The second layer of the first image: skopeo takes them in order.
        if method == "PATCH" and path.startswith("/v2/first/"):
            hung.append(path)
            return Hang() if len(hung) == 2 else None
        return None

    options = Options(dest_tls_verify=False, command_timeout="5s")
    with fault_proxy(destination.host, rule=hang) as proxy:
        _, ends, _ = pushed_here(tmp_path / "out", proxy.host, options=options)
    assert list(ends) == ["second/app:v1", "first/app:v1"]  # it did not wait for the time-out
    assert ends["first/app:v1"].tries == 2
    assert uploads(destination)[Digest.of(b"shared" * 1000)] == 1


def test_every_layer_is_sent_once_and_what_was_done_with_each_byte_is_told(
    tmp_path: Path, destination: Registry
) -> None:
    out = exported(tmp_path, 12)
    run("push", out, destination.host, PLAIN)
    assert set(uploads(destination).values()) == {1}
    sizes = {path.name: path.stat().st_size for path in out.rglob("*") if len(path.name) == 64}
    told = results(out)
    sent = sum(int(str(row["bytes_sent"])) for row in told)
    assert sent == sum(sizes.values())
    all_of_it = sum(path.stat().st_size for path in out.rglob("*") if len(path.name) == 64)
    kinds = ("bytes_sent", "bytes_mounted", "bytes_present")
    assert sum(int(str(row[kind])) for row in told for kind in kinds) == all_of_it


# --- an index that skopeo cannot push whole


def test_an_index_that_must_be_converted_goes_child_by_child(
    tmp_path: Path, destination: Registry
) -> None:
    builder = StorageBuilder(tmp_path / "source")
    children = [
        builder.image("a/b", None, [b"layer %d" % number], kind="oci") for number in range(2)
    ]
    digest = builder.index("a/b", "v1", children, kind="oci")
    run("export", tmp_path / "source", tmp_path / "out")
    text = (
        'time="" level=fatal msg="copying image: Manifest list must be converted to type '
        '\\"application/vnd.oci.image.index.v1+json\\" to be written to destination, '
        'but we cannot modify it"\n'
    )

    def around(command: Sequence[str], copy: Callable[[], Finished]) -> Finished:
        # As 1.14 to 1.22 do with zstd children.
        if "--all" in command and command[-1].endswith(":v1"):
            return Finished(1, "", text)
        return copy()

    _, ends, _ = pushed_here(tmp_path / "out", destination.host, around=around)
    assert (type(ends["a/b:v1"]), ends["a/b:v1"].digest) == (Pushed, digest)
    run("verify", tmp_path / "out", destination.host, PLAIN)


# --- pace


def test_no_more_run_at_a_time_in_one_project_than_allowed(
    tmp_path: Path, destination: Registry
) -> None:
    out = exported(tmp_path, 12, shared=0)
    gauge = Gauge(by_project=True)
    pushed_here(out, destination.host, pace=Pace(jobs=8, jobs_per_project=2), around=gauge)
    assert gauge.most == {"team0": 2, "team1": 2}


def test_one_image_is_made_ready_and_only_that_while_the_last_one_allowed_is_sent(
    tmp_path: Path, destination: Registry
) -> None:
    out = exported(tmp_path, 6, shared=0, repositories=6)
    gauge = Gauge()
    pushed_here(out, destination.host, pace=Pace(jobs=1), around=gauge)
    assert gauge.most["all"] == 2
    puts = [
        "/".join(r.path.split("/")[2:4])
        for r in destination.requests()
        if r.method == "PUT" and "/blobs/uploads/" in r.path
    ]
    turns = [repository for repository, _ in groupby(puts)]
    assert len(turns) == len(set(turns)) == 6, "none in the midst of another"


@pytest.mark.parametrize("careful", ["--fail-fast", "--command-timeout=1h"])
def test_none_is_made_ready_if_it_must_not_start_or_is_timed(
    tmp_path: Path, destination: Registry, careful: str
) -> None:
    out = exported(tmp_path, 4, shared=0)
    gauge = Gauge()
    pace = Pace(jobs=1, fail_fast=careful == "--fail-fast")
    timeout = "1h" if careful.startswith("--command-timeout") else None
    options = Options(dest_tls_verify=False, command_timeout=timeout)
    pushed_here(out, destination.host, pace=pace, options=options, around=gauge)
    assert gauge.most["all"] == 1


def damaged(out: Path, name: str) -> None:
    """Take an image's layer away; the registry's own stays."""
    layer = max((p for p in (out / name).iterdir() if len(p.name) == 64), key=os.path.getsize)
    layer.unlink()


def test_fail_fast_starts_nothing_more_and_keep_going_does(
    tmp_path: Path, destination: Registry
) -> None:
    out = exported(tmp_path, 4)
    damaged(out, names(out)[0])
    summary = rows(
        run("push", out, destination.host, PLAIN, "--fail-fast", "--json", code=1), "summary"
    )[0]
    assert (summary["images"], summary["failed"], summary["left"]) == (0, 1, 3)
    summary = rows(
        run("push", out, destination.host, PLAIN, "--keep-going", "--json", code=1), "summary"
    )[0]
    assert (summary["images"], summary["failed"], summary["left"]) == (3, 1, 0)


# --- results


def test_each_image_has_its_line_and_the_failed_ones_a_list_that_from_file_takes(
    tmp_path: Path, destination: Registry
) -> None:
    out = exported(tmp_path, 4)
    bad = names(out)[1]
    kept = tmp_path / "kept"
    (out / bad).rename(kept)
    said = run("push", out, destination.host, PLAIN, code=1)
    failed = out / ".skopeo-dir/failed.txt"
    assert str(failed) in said
    assert failed.read_text() == f"{bad}\n"
    lines = {row["name"]: row for row in results(out)}
    assert set(lines) == {*names(out), bad}
    assert (lines[bad]["error"], lines[bad]["tries"]) == ("missing-manifest", 0)
    good = lines[names(out)[0]]
    assert (good["status"], good["tries"]) == ("pushed", 1)
    assert good["destination"] == f"{destination.host}/{good['name']}"
    assert float(str(good["seconds"])) > 0
    kept.rename(out / bad)
    run("push", out, destination.host, PLAIN, "--from-file", failed)
    assert [row["name"] for row in results(out)] == [bad]
    assert failed.read_text() == ""


def test_the_digestfile_has_skopeos_format(tmp_path: Path, destination: Registry) -> None:
    out = exported(tmp_path, 4)
    digestfile = tmp_path / "digests"
    run("push", out, destination.host, PLAIN, "--digestfile", digestfile)
    expected = sorted(
        f"{Digest.of((out / name / 'manifest.json').read_bytes())}"
        f" docker://{destination.host}/{name}"
        for name in names(out)
    )
    assert sorted(digestfile.read_text().splitlines()) == expected


def test_a_file_that_cannot_be_written_is_exit_code_2_before_anything_is_sent(
    tmp_path: Path, destination: Registry
) -> None:
    out = exported(tmp_path, 1)
    run("push", out, destination.host, PLAIN, "--digestfile", tmp_path, code=2)
    assert [r for r in destination.requests() if r.method == "PUT"] == []


# --- dry run


def test_a_dry_run_changes_nothing_and_foretells_every_request(
    tmp_path: Path, destination: Registry
) -> None:
    out = exported(tmp_path, 12)
    run("push", out, destination.host, PLAIN, "--include", "team0/app0:*")
    before, asked = snapshot(out), len(destination.requests())
    forecast = rows(run("push", out, destination.host, PLAIN, "-n", "--json"), "forecast")[0]
    assert snapshot(out) == before
    again = destination.requests()[asked:]
    assert {r.method for r in again if r.path != "/v2/"} == {"HEAD"}
    greetings = len(again) - 12
    asked = len(destination.requests())
    summary = rows(run("push", out, destination.host, PLAIN, "--json"), "summary")[0]
    told = (forecast["images_to_push"], forecast["images_present"], forecast["projects"])
    assert told == (9, 3, ["team0", "team1"])
    assert forecast["bytes_to_send"] == summary["bytes_sent"]
    assert forecast["bytes_to_mount"] == summary["bytes_mounted"]
    assert forecast["blobs_to_mount"] == summary["mounted"]
    assert forecast["requests"] == len(destination.requests()) - asked - greetings


def test_a_dry_run_of_a_migration_needs_no_out_and_says_the_same(
    tmp_path: Path, destination: Registry
) -> None:
    build(tmp_path / "source", 8)
    said = run("migrate", tmp_path / "source", destination.host, PLAIN, "-n", "--json")
    assert sorted(path.name for path in tmp_path.iterdir() if "out" in path.name) == []
    assert not (tmp_path / "source.skopeo-dir").exists()
    run("export", tmp_path / "source", tmp_path / "out")
    again = run("push", tmp_path / "out", destination.host, PLAIN, "-n", "--json")
    assert rows(said, "forecast") == rows(again, "forecast")


def test_the_printed_commands_do_the_work(tmp_path: Path, destination: Registry) -> None:
    out = exported(tmp_path, 4)
    commands = run("push", out, destination.host, PLAIN, "--print-commands").splitlines()
    assert len(commands) == 4
    for command in commands:
        subprocess.run(shlex.split(command), check=True, capture_output=True)
    run("verify", out, destination.host, PLAIN)


def test_no_printed_command_holds_a_secret(tmp_path: Path) -> None:
    out = exported(tmp_path, 1)
    (tmp_path / "password").write_text("hunter2")
    with serve(tmp_path / "locked", htpasswd=("me", "hunter2")) as registry:
        account = ("--username", "me", "--password-file", tmp_path / "password")
        said = run("push", out, registry.host, PLAIN, *account, "--print-commands")
    assert said.count("skopeo") >= 1
    assert "hunter2" not in said
    assert "auth" not in said


# --- by way of sync


def test_sync_brings_everything_there_and_a_second_run_is_heads(
    tmp_path: Path, destination: Registry
) -> None:
    out = exported(tmp_path, 8)
    prefixed = f"{destination.host}/mirror"
    summary = rows(run("push", out, prefixed, PLAIN, "--via", "sync", "--json"), "summary")[0]
    assert (summary["images"], summary["present"], summary["failed"]) == (8, 0, 0)
    run("verify", out, prefixed, PLAIN)
    summary = rows(run("push", out, prefixed, PLAIN, "--via", "sync", "--json"), "summary")[0]
    assert (summary["images"], summary["present"]) == (8, 8)


def test_sync_names_what_was_refused_and_the_others_arrive(
    tmp_path: Path, destination: Registry
) -> None:
    out = exported(tmp_path, 8)

    def refuse(method: str, path: str, count: int) -> Fault | None:
        denied = method == "PUT" and path == "/v2/team1/app1/manifests/v0"
        return Refuse(403, code="DENIED") if denied else None

    with fault_proxy(destination.host, rule=refuse) as proxy:
        said = run("push", out, proxy.host, PLAIN, "--via", "sync", "--json", code=1)
    assert [(row["name"], row["error"], row["tries"]) for row in rows(said, "failed")] == [
        ("team1/app1:v0", "permanent", 1)
    ]
    assert rows(said, "summary")[0]["images"] == 7


# --- what is wrong in OUT


def replace(path: Path, content: bytes) -> None:
    """Give a name new content, as a careless editor would; the registry's file stays."""
    path.unlink()
    path.write_bytes(content)


def test_a_changed_byte_in_a_manifest_fails_before_anything_is_sent(
    tmp_path: Path, destination: Registry
) -> None:
    out = exported(tmp_path, 1)
    manifest = out / names(out)[0] / "manifest.json"
    replace(manifest, manifest.read_bytes() + b"\n")
    said = run("push", out, destination.host, PLAIN, "--json", code=1)
    assert rows(said, "failed")[0]["error"] == "wrong-digest"
    assert {r.method for r in destination.requests()} == {"GET"}  # ours and the rig's pings


def test_a_truncated_layer_fails_even_if_the_destination_has_the_blob(
    tmp_path: Path, destination: Registry
) -> None:
    out = exported(tmp_path, 2, repositories=1)
    run("push", out, destination.host, PLAIN, "--include", "**:v0")
    layer = out / "team0/app0:v1" / Digest.of(b"shared 0" * 100).hex
    replace(layer, layer.read_bytes()[:-1])
    said = run("push", out, destination.host, PLAIN, "--json", code=1)
    assert [(row["name"], row["error"]) for row in rows(said, "failed")] == [
        ("team0/app0:v1", "wrong-size")
    ]


# --- signals, locks, death


def skopeos(out: Path) -> list[int]:
    """Return the processes that copy from OUT."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if f"dir:{out}/".encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def wait_until(condition: Callable[[], object], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def hang_uploads_of(repository: str) -> Callable[[str, str, int], Fault | None]:
    def rule(method: str, path: str, count: int) -> Fault | None:
        return Hang() if method == "PATCH" and path.startswith(f"/v2/{repository}/") else None

    return rule


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_within_ten_seconds_and_what_was_done_is_written(
    tmp_path: Path, destination: Registry, number: signal.Signals, code: int
) -> None:
    out = exported(tmp_path, 4, shared=0)
    with fault_proxy(destination.host, rule=hang_uploads_of("team1/app3")) as proxy:
        process = start("push", out, proxy.host, PLAIN)
        assert wait_until(lambda: list(out.glob(".skopeo-dir/results-*.jsonl")), 20)
        assert wait_until(lambda: len(results(out)) == 3, 20)
        began = time.monotonic()
        process.send_signal(number)
        _, stderr = process.communicate()
    assert process.returncode == code
    assert time.monotonic() - began < 10
    assert "interrupted" in stderr
    assert {row["status"] for row in results(out)} == {"pushed"}
    assert skopeos(out) == []


def test_a_signal_ends_it_within_ten_seconds_while_nothing_is_answered(
    tmp_path: Path, destination: Registry
) -> None:
    out = exported(tmp_path, 2)

    def hang(method: str, path: str, count: int) -> Fault | None:
        return Hang() if method == "HEAD" else None

    with fault_proxy(destination.host, rule=hang) as proxy:
        process = start("push", out, proxy.host, PLAIN)
        assert wait_until(lambda: len(proxy.requests) >= 3, 20)
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        process.communicate()
    assert process.returncode == 143
    assert time.monotonic() - began < 10


def test_no_skopeo_survives_a_sigkill_and_the_lock_is_free(
    tmp_path: Path, destination: Registry
) -> None:
    out = exported(tmp_path, 4, shared=0)
    with fault_proxy(destination.host, rule=hang_uploads_of("team1/app3")) as proxy:
        process = start("push", out, proxy.host, PLAIN)
        assert wait_until(lambda: skopeos(out), 20)
        second = start("push", out, proxy.host, PLAIN)
        _, stderr = second.communicate()
        assert second.returncode == 6
        assert f"process {process.pid} " in stderr
        process.kill()
        process.communicate()
        assert wait_until(lambda: not skopeos(out), 1.0)
    run("push", out, destination.host, PLAIN)


@pytest.mark.slow
def test_a_push_killed_twenty_times_arrives_and_repeats_no_more_than_was_in_flight(
    tmp_path: Path, destination: Registry
) -> None:
    out = exported(tmp_path, 200, repositories=20)
    moments = [0.4 + (number * 7 % 20) / 12 for number in range(20)]
    for moment in moments:
        process = start("push", out, destination.host, PLAIN, "-j", "8")
        try:
            process.wait(moment)
        except subprocess.TimeoutExpired:
            process.kill()
        process.communicate()
        assert wait_until(lambda: not skopeos(out), 1.0)
    run("push", out, destination.host, PLAIN)
    run("verify", out, destination.host, PLAIN)
    puts = [r for r in destination.requests() if r.method == "PUT" and "/manifests/" in r.path]
    assert len(puts) <= 200 + 8 * len(moments)


def test_a_finished_push_asks_by_head_only(tmp_path: Path, destination: Registry) -> None:
    out = exported(tmp_path, 8)
    run("push", out, destination.host, PLAIN)
    before = len(destination.requests())
    run("push", out, destination.host, PLAIN)
    again = [request for request in destination.requests()[before:] if request.path != "/v2/"]
    assert [request.method for request in again] == ["HEAD"] * 8
