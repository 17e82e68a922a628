"""Exports of a registry that is in use: pushes, deletes and garbage collection go on meanwhile."""

import hashlib
import random
import shutil
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import orjson
import pytest

from exporter import dirlayout
from exporter.events import Event, Exported, Failed
from exporter.export import export
from exporter.storage import Storage
from tests.builders import CONFIG_TYPES, LAYER_TYPES, MANIFEST_TYPES, descriptor
from tests.registry import collect_garbage, serve

SECONDS = 60
REPOSITORIES, TAGS = ("app", "team/app", "team/app/sub"), ("v1", "v2", "v3", "latest")


def send(method: str, url: str, body: bytes | None = None, kind: str = "") -> dict[str, str]:
    headers = {"Content-Type": kind} if kind else {}
    request = urllib.request.Request(url, data=body, method=method, headers=headers)
    with urllib.request.urlopen(request) as response:
        return dict(response.headers)


def push(host: str, repository: str, tag: str, seed: int) -> None:
    base = f"http://{host}/v2/{repository}"
    contents = [f"shared {seed % 5}".encode(), f"own {seed}".encode(), b'{"seed":%d}' % seed]
    for content in contents:
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        location = send("POST", f"{base}/blobs/uploads/", b"")["Location"]
        send("PUT", f"{location}&digest={digest}", content, "application/octet-stream")
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPES["oci"],
        "config": descriptor(contents[2], CONFIG_TYPES["oci"]),
        "layers": [descriptor(content, LAYER_TYPES["oci"]) for content in contents[:2]],
    }
    send("PUT", f"{base}/manifests/{tag}", orjson.dumps(manifest), MANIFEST_TYPES["oci"])


def delete(host: str, repository: str, tag: str) -> None:
    base = f"http://{host}/v2/{repository}/manifests"
    request = urllib.request.Request(f"{base}/{tag}", headers={"Accept": MANIFEST_TYPES["oci"]})
    with urllib.request.urlopen(request) as response:
        digest = response.headers["Docker-Content-Digest"]
    send("DELETE", f"{base}/{digest}")


def use(host: str, root: Path, stop: threading.Event, done: dict[str, int]) -> None:
    """Push, delete and collect garbage, one after the other, until told to stop."""
    choose = random.Random(1)
    while not stop.is_set():
        kind = choose.choice(["push"] * 20 + ["delete"] * 4 + ["collect"])
        repository, tag = choose.choice(REPOSITORIES), choose.choice(TAGS)
        try:
            if kind == "push":
                push(host, repository, tag, choose.randrange(10**9))
            elif kind == "delete":
                delete(host, repository, tag)
            else:
                collect_garbage(root)
        except urllib.error.HTTPError as error:
            if error.code != 404:  # nothing to delete
                raise
        done[kind] = done.get(kind, 0) + 1


def is_whole(directory: Path, digest: str) -> bool:
    content = (directory / "manifest.json").read_bytes()
    value = orjson.loads(content)
    wanted = {each["digest"] for each in (value["config"], *value["layers"])}
    return f"sha256:{hashlib.sha256(content).hexdigest()}" == digest and all(
        hashlib.sha256((directory / blob[7:]).read_bytes()).hexdigest() == blob[7:]
        for blob in wanted
    )


@pytest.mark.slow
def test_every_image_exported_from_a_live_registry_is_whole_or_said_to_have_changed(
    tmp_path: Path,
) -> None:
    events: list[Event] = []
    rounds = 0
    stop = threading.Event()
    done: dict[str, int] = {}
    failures: list[BaseException] = []
    with serve(tmp_path / "registry") as registry:
        for repository in REPOSITORIES:
            push(registry.host, repository, "stays", 0)

        def work() -> None:
            try:
                use(registry.host, registry.root, stop, done)
            except BaseException as error:  # noqa: BLE001 - it is raised again below
                failures.append(error)

        worker = threading.Thread(target=work)
        worker.start()
        end = time.monotonic() + SECONDS
        while time.monotonic() < end and not failures:
            out = tmp_path / "out"
            dirlayout.prepare(str(out))
            events.clear()
            export(Storage.open(str(registry.root)), str(out), observe=events.append)
            for event in events:
                if isinstance(event, Exported):
                    assert is_whole(out / event.name, event.digest), event
                if isinstance(event, Failed):
                    assert event.error == "changed-during-scan", event
            rounds += 1
            if rounds % 2:
                shutil.rmtree(out)
        stop.set()
        worker.join()
    assert failures == []
    assert (rounds > 10, min(done.values()) > 2, len(done)) == (True, True, 3)
