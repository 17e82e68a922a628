"""The whole job on real input, with the real skopeo and docker-registry as the oracle."""

import os
import re
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import orjson
import pytest

from tests.builders import FIXTURES, unpack_fixture
from tests.registry import Registry, serve, skopeo, skopeo_environment
from tests.snapshot import snapshot
from tests.token_server import token_realm

ROWS = [orjson.loads(line) for line in (FIXTURES / "registry.jsonl").read_bytes().splitlines()]
NAMES = [f"{row['repository']}:{row['tag']}" for row in ROWS]
DIGESTS = {name: row["digest"] for name, row in zip(NAMES, ROWS, strict=True)}
PLAIN = "--dest-tls-verify=false"


class Run(NamedTuple):
    """How a command ended."""

    code: int
    stdout: str
    stderr: str


def skopeo_dir(*arguments: str | Path, data_home: Path, stdin: str = "", path: str = "") -> Run:
    environment = skopeo_environment(data_home) | ({"PATH": path} if path else {})
    done = subprocess.run(
        [sys.executable, "-m", "exporter", *map(str, arguments)],
        input=stdin,
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert "Traceback" not in done.stderr
    return Run(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack_fixture(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def out(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("export") / "out"
    run = skopeo_dir("export", source, out, data_home=out.parent)
    assert run.code == 0, run.stderr
    return out


@pytest.fixture(scope="module")
def served(source: Path) -> Iterator[Registry]:
    with serve(source) as registry:
        yield registry


@pytest.fixture
def destination(tmp_path: Path) -> Iterator[Registry]:
    with serve(tmp_path / "destination") as registry:
        yield registry


def digest_at(registry: Registry, repository: str, reference: str) -> str:
    """Ask the registry with nothing of ours in between."""
    kinds = ["oci.image.index.v1", "oci.image.manifest.v1"]
    kinds += ["docker.distribution.manifest.list.v2", "docker.distribution.manifest.v2"]
    request = urllib.request.Request(
        f"http://{registry.host}/v2/{repository}/manifests/{reference}",
        headers={"Accept": ", ".join(f"application/vnd.{kind}+json" for kind in kinds)},
    )
    with urllib.request.urlopen(request) as response:
        return str(response.headers["Docker-Content-Digest"])


def children(directory: Path) -> list[str]:
    return [f"sha256:{path.name[:64]}" for path in directory.glob("?*.manifest.json")]


@pytest.mark.parametrize("name", NAMES)
def test_an_export_is_what_skopeo_writes_from_the_same_storage(
    name: str, out: Path, served: Registry, tmp_path: Path
) -> None:
    oracle = tmp_path / "oracle"
    skopeo(
        "copy", "--all", "--preserve-digests", "--src-tls-verify=false",
        f"docker://{served.host}/{name}", f"dir:{oracle}",
    )  # fmt: skip

    different = subprocess.run(
        ["diff", "-r", oracle, out / name], capture_output=True, text=True, check=False
    )

    assert (different.returncode, different.stdout) == (0, "")


def test_every_tag_of_the_registry_is_exported_and_nothing_else(out: Path) -> None:
    manifests = out.glob("**/manifest.json")
    assert sorted(str(path.parent.relative_to(out)) for path in manifests) == sorted(NAMES)


def test_every_exported_file_but_version_is_the_registrys_own_inode(
    out: Path, source: Path
) -> None:
    data = {path.stat().st_ino for path in source.glob("**/data")}
    files = [path for name in NAMES for path in (out / name).iterdir() if path.name != "version"]
    assert [path for path in files if path.stat().st_ino not in data] == []


def test_after_a_migration_the_destination_has_every_tag_and_child_and_the_source_is_untouched(
    source: Path, destination: Registry, tmp_path: Path
) -> None:
    before = snapshot(source)

    run = skopeo_dir(
        "migrate", source, destination.host, PLAIN, "--out", tmp_path / "out", data_home=tmp_path
    )

    assert run.code == 0, run.stderr
    assert "12 pushed, 12 verified, 0 failed" in run.stdout
    assert snapshot(source) == before
    for row, name in zip(ROWS, NAMES, strict=True):
        assert digest_at(destination, row["repository"], row["tag"]) == row["digest"]
        for child in children(tmp_path / "out" / name):
            assert digest_at(destination, row["repository"], child) == child


def test_what_was_pushed_comes_back_with_identical_bytes(
    out: Path, destination: Registry, tmp_path: Path
) -> None:
    assert skopeo_dir("push", out, destination.host, PLAIN, data_home=tmp_path).code == 0

    for name in NAMES:
        back = tmp_path / "back" / name
        back.parent.mkdir(parents=True, exist_ok=True)
        skopeo(
            "copy", "--all", "--preserve-digests", "--src-tls-verify=false",
            f"docker://{destination.host}/{name}", f"dir:{back}",
        )  # fmt: skip
        assert subprocess.run(["diff", "-r", back, out / name], check=False).returncode == 0


def test_every_blob_is_uploaded_once_whatever_repositories_share_it(
    out: Path, destination: Registry, tmp_path: Path
) -> None:
    skopeo_dir("push", out, destination.host, PLAIN, "-j", "8", data_home=tmp_path)

    blobs = {
        path.name
        for name in NAMES
        for path in (out / name).iterdir()
        if re.fullmatch("[0-9a-f]{64}", path.name)
    }
    uploaded = [
        path
        for method, path, status in destination.requests()
        if method == "PUT" and "/blobs/uploads/" in path and status == 201
    ]
    assert len(uploaded) == len(blobs)


def test_a_second_push_only_asks(out: Path, destination: Registry, tmp_path: Path) -> None:
    skopeo_dir("push", out, destination.host, PLAIN, data_home=tmp_path)
    first = len(destination.requests())

    run = skopeo_dir("push", out, destination.host, PLAIN, data_home=tmp_path)

    asked = destination.requests()[first:]
    assert (run.code, {request.method for request in asked}) == (0, {"GET", "HEAD"})
    assert {request.path for request in asked if request.method == "GET"} == {"/v2/"}
    assert len([request for request in asked if request.method == "HEAD"]) == len(NAMES)


def test_a_prefix_is_put_before_every_repository(
    out: Path, destination: Registry, tmp_path: Path
) -> None:
    skopeo_dir("push", out, f"{destination.host}/mirror/old", PLAIN, data_home=tmp_path)
    assert digest_at(destination, "mirror/old/busybox", "1.35") == DIGESTS["busybox:1.35"]


def test_skopeo_sync_takes_out_as_it_is(out: Path, destination: Registry, tmp_path: Path) -> None:
    skopeo(
        "sync", "--all", "--preserve-digests", "--scoped", "--src", "dir", "--dest", "docker",
        PLAIN, str(out), destination.host,
    )  # fmt: skip
    found = {
        name: digest_at(destination, row["repository"], row["tag"])
        for name, row in zip(NAMES, ROWS, strict=True)
    }
    assert found == DIGESTS


def test_verify_names_what_the_destination_lacks_or_has_otherwise(
    out: Path, destination: Registry, tmp_path: Path
) -> None:
    skopeo_dir("push", out, destination.host, PLAIN, "--exclude", "charts/**", data_home=tmp_path)
    skopeo(
        "copy", "--dest-tls-verify=false", f"dir:{out}/foo:v1",
        f"docker://{destination.host}/busybox:1.35",
    )  # fmt: skip

    run = skopeo_dir("verify", out, destination.host, PLAIN, "--json", data_home=tmp_path)

    rows = [orjson.loads(line) for line in run.stdout.splitlines()]
    failed = {row["name"]: row["error"] for row in rows if row["message_type"] == "failed"}
    assert run.code == 1
    assert failed == {"busybox:1.35": "different", "charts/hello:0.1.0": "missing"}


def test_verify_asks_for_every_child_of_an_index(
    out: Path, destination: Registry, tmp_path: Path
) -> None:
    name = "platform/tools/net/probe:2.0-plain"
    skopeo_dir("push", out, destination.host, PLAIN, "--include", name, data_home=tmp_path)
    child = children(out / name)[0]
    link = destination.root / "docker/registry/v2/repositories/platform/tools/net/probe"
    (link / "_manifests/revisions/sha256" / child[7:] / "link").unlink()

    run = skopeo_dir("verify", out, destination.host, PLAIN, "--include", name, data_home=tmp_path)

    assert (run.code, f"{child} is not at the destination" in run.stderr) == (1, True)


def test_a_changed_manifest_in_out_fails_before_anything_of_it_is_sent(
    source: Path, destination: Registry, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    skopeo_dir("export", source, out, "--include", "foo:v1", data_home=tmp_path)
    manifest = out / "foo:v1/manifest.json"
    content = manifest.read_bytes()
    manifest.unlink()  # never write through the link
    manifest.write_bytes(content + b"\n")

    run = skopeo_dir("push", out, destination.host, PLAIN, data_home=tmp_path)

    assert (run.code, "its bytes were changed" in run.stderr) == (1, True)
    assert {request.method for request in destination.requests()} == {"GET"}


@pytest.mark.parametrize("broken", ["missing", "truncated"])
def test_a_layer_that_is_not_whole_fails_even_if_the_destination_has_it(
    broken: str, source: Path, destination: Registry, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    skopeo_dir("export", source, out, "--include", "foo:*", data_home=tmp_path)
    skopeo_dir("push", out, destination.host, PLAIN, "--include", "foo:v1", data_home=tmp_path)
    manifest = orjson.loads((out / "foo:latest/manifest.json").read_bytes())
    layer = out / "foo:latest" / manifest["layers"][0]["digest"][7:]
    content = layer.read_bytes()
    layer.unlink()
    if broken == "truncated":
        layer.write_bytes(content[:-1])

    run = skopeo_dir("push", out, destination.host, PLAIN, data_home=tmp_path)

    assert (run.code, run.stderr.count("push failed: foo:latest: ")) == (1, 1)
    assert f"sha256:{layer.name} in OUT" in run.stderr


def test_a_password_reaches_the_registry_and_no_command_line(out: Path, tmp_path: Path) -> None:
    """A wrapper around skopeo notes every command line that it was given."""
    wrapper, seen = tmp_path / "skopeo", tmp_path / "seen"
    wrapper.write_text(f'#!/bin/sh\necho "$@" >>{seen}\nexec /usr/bin/skopeo "$@"\n')
    wrapper.chmod(0o755)
    with serve(tmp_path / "destination", htpasswd=("robot$ci", "s3cret:x")) as registry:
        run = skopeo_dir(
            "push", out, registry.host, PLAIN, "--username", "robot$ci", "--password-stdin",
            "--skopeo", wrapper, "--include", "foo:v1",
            data_home=tmp_path, stdin="s3cret:x\n",
        )  # fmt: skip

    assert (run.code, "s3cret" in seen.read_text()) == (0, False)


def test_bearer_tokens_are_enough(out: Path, destination: Registry, tmp_path: Path) -> None:
    password = tmp_path / "password"
    password.write_text("secret\n")
    with token_realm(destination.host, username="admin", password="secret") as realm:
        arguments: list[str | Path] = [
            realm.host,
            PLAIN,
            "--username",
            "admin",
            "--password-file",
            password,
        ]
        pushed = skopeo_dir("push", out, *arguments, data_home=tmp_path)
        verified = skopeo_dir("verify", out, *arguments, data_home=tmp_path)

    assert (pushed.code, verified.code) == (0, 0)


def test_tls_with_a_certificate_directory(out: Path, tmp_path: Path) -> None:
    with serve(tmp_path / "destination", tls=True) as registry:
        run = skopeo_dir(
            "push", out, registry.host, "--dest-cert-dir", registry.ca_dir, data_home=tmp_path
        )
        unknown = skopeo_dir("push", out, registry.host, data_home=tmp_path)

    assert run.code == 0
    assert (unknown.code, "--dest-cert-dir" in unknown.stderr) == (4, True)


def test_a_destination_that_is_not_there_is_temporary(out: Path, tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        run = skopeo_dir(
            "push", out, f"127.0.0.1:{unused.getsockname()[1]}", PLAIN, data_home=tmp_path
        )
    assert (run.code, "connection refused" in run.stderr) == (5, True)


def test_plain_http_where_tls_is_expected_is_said_with_the_option(
    out: Path, destination: Registry, tmp_path: Path
) -> None:
    run = skopeo_dir("push", out, destination.host, data_home=tmp_path)
    assert (run.code, "--dest-tls-verify=false" in run.stderr) == (4, True)


def test_a_destination_that_refuses_the_password_is_permanent(out: Path, tmp_path: Path) -> None:
    with serve(tmp_path / "destination", htpasswd=("admin", "right")) as registry:
        run = skopeo_dir(
            "push", out, registry.host, PLAIN, "--username", "admin", "--password-stdin",
            data_home=tmp_path, stdin="wrong",
        )  # fmt: skip
    assert (run.code, run.stderr.startswith("error: cannot use 127.0.0.1:")) == (4, True)


def test_without_skopeo_nothing_starts(source: Path, destination: Registry, tmp_path: Path) -> None:
    run = skopeo_dir(
        "migrate", source, destination.host, PLAIN, "--out", tmp_path / "out",
        data_home=tmp_path, path=str(tmp_path),
    )  # fmt: skip
    assert (run.code, "skopeo not found" in run.stderr) == (2, True)
    assert not os.path.exists(tmp_path / "out")


def test_a_skopeo_older_than_1_6_is_refused(
    out: Path, destination: Registry, tmp_path: Path
) -> None:
    old = tmp_path / "old-skopeo"
    old.write_text('#!/bin/sh\necho "skopeo version 1.5.2"\n')
    old.chmod(0o755)
    run = skopeo_dir("push", out, destination.host, PLAIN, "--skopeo", old, data_home=tmp_path)
    assert (run.code, "skopeo 1.6 or later is needed, found 1.5.2" in run.stderr) == (2, True)


def test_the_version_is_printed() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "exporter", "--version"], capture_output=True, text=True, check=True
    )
    assert re.fullmatch(r"skopeo-dir \d+\.\d+\.\d+\n", done.stdout)


def test_what_only_some_commands_need_is_not_imported_at_the_start() -> None:
    code = (
        "import sys; from exporter.cli.app import command_line; command_line();"
        "print(*{'rich', 'urllib3'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
