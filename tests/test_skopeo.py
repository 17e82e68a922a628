"""The door to skopeo, with the real skopeo wherever it can be made to say what is tested."""

import gzip
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import orjson
import pytest

from exporter.digest import Digest
from exporter.errors import (
    Interrupted,
    PermanentDestinationError,
    SkopeoDirError,
    SourceError,
    TemporaryDestinationError,
    UsageError,
)
from exporter.skopeo import (
    MAX_OUTPUT,
    MAX_SENTENCE,
    ChildrenFirst,
    Finished,
    Mode,
    Options,
    Processes,
    Run,
    Skopeo,
    Turn,
    command,
    explain,
)
from tests.registry import serve, skopeo, skopeo_environment

PERMANENT, TEMPORARY = PermanentDestinationError, TemporaryDestinationError
PLAIN_HTTP = Options(dest_tls_verify=False)
DOCKER = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
HEX = "5" * 64
SOURCE = "/out/lib/app:v1"


@pytest.fixture(autouse=True)
def own_blob_info_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in skopeo_environment(tmp_path / "cache").items():
        monkeypatch.setenv(name, value)


# --- images, and a registry that answers as it is told to


class Image:
    """A `dir:` image of one layer, written by hand."""

    def __init__(self, path: Path, *, layer: bytes = b"layer") -> None:
        path.mkdir(parents=True)
        packed = gzip.compress(layer, mtime=0)
        diff_id = Digest.of(layer)
        config = orjson.dumps({"rootfs": {"type": "layers", "diff_ids": [diff_id]}, "os": "linux"})
        self.path, self.layer, self.config = path, Digest.of(packed), Digest.of(config)
        self.manifest = orjson.dumps(
            {
                "schemaVersion": 2,
                "mediaType": DOCKER,
                "config": {
                    "mediaType": "application/vnd.docker.container.image.v1+json",
                    "size": len(config),
                    "digest": self.config,
                },
                "layers": [
                    {
                        "mediaType": "application/vnd.docker.image.rootfs.diff.tar.gzip",
                        "size": len(packed),
                        "digest": self.layer,
                    }
                ],
            }
        )
        (path / self.layer.hex).write_bytes(packed)
        (path / self.config.hex).write_bytes(config)
        (path / "manifest.json").write_bytes(self.manifest)
        (path / "version").write_text("Directory Transport Version: 1.1\n")

    def become_index(self, child_type: str = DOCKER) -> None:
        """Put an index over what is there; may be done again, for a nested one."""
        digest = Digest.of(self.manifest)
        (self.path / f"{digest.hex}.manifest.json").write_bytes(self.manifest)
        child = {
            "mediaType": child_type,
            "size": len(self.manifest),
            "digest": digest,
            "platform": {"os": "linux", "architecture": "amd64"},
        }
        self.manifest = orjson.dumps(
            {"schemaVersion": 2, "mediaType": DOCKER_LIST, "manifests": [child]}
        )
        (self.path / "manifest.json").write_bytes(self.manifest)


class FakeRegistry(ThreadingHTTPServer):
    """Takes every push, but for the one kind of request that has a fault."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.host = f"127.0.0.1:{self.server_port}"
        self.fault: tuple[str, int | str, bytes] | None = None
        self.seen: list[str] = []
        self.before_answer: Callable[[str], None] = lambda _kind: None

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of connections that skopeo or we cut."""


class _Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeRegistry

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        pass

    def _answer(self) -> None:
        path = self.path.partition("?")[0]
        manifest = "/manifests/" in path
        kind = "PING" if path == "/v2/" else f"{self.command}{' manifest' if manifest else ''}"
        if kind == "PUT manifest" and "list" in self.headers["Content-Type"]:
            kind = "PUT index"
        self.server.seen.append(kind)
        self.server.before_answer(kind)
        status, body = (
            {
                "PING": 200,
                "POST": 202,
                "PATCH": 202,
                "PUT": 201,
                "PUT manifest": 201,
                "PUT index": 201,
            }.get(kind, 404),
            b"",
        )
        fault = self.server.fault
        if fault is not None and fault[0] == kind:
            if isinstance(fault[1], str):
                self.close_connection = True
                if fault[1] == "reset":
                    linger = struct.pack("ii", 1, 0)
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                    self.connection.close()
                return
            status, body = fault[1], fault[2]
        self._read_body()
        self.send_response(status)
        if status == 202:
            self.send_header("Location", "/v2/a/b/blobs/uploads/x?_state=private")
        if body.startswith(b"{"):
            self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _read_body(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                self.rfile.read(size + 2)
            self.rfile.readline()

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = _answer  # noqa: N815 - the base's names


@pytest.fixture
def fake_registry() -> Iterator[FakeRegistry]:
    with FakeRegistry() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@contextmanager
def deaf_server() -> Iterator[tuple[str, socket.socket]]:
    """A server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(20)
        yield f"127.0.0.1:{listener.getsockname()[1]}", listener


def probe(options: Options = PLAIN_HTTP, processes: Processes | None = None) -> Skopeo:
    return Skopeo.probe(options=options, run=(processes or Processes()).run)


def script(path: Path, body: str) -> str:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


def error_of(call: Callable[[], object]) -> SkopeoDirError:
    with pytest.raises(SkopeoDirError) as caught:
        call()
    return caught.value


# --- probe


def test_the_installed_skopeo_can_do_what_we_need() -> None:
    found = probe()
    assert found.version == skopeo("--version").split()[-1]
    assert {"--all", "--retry-times", "--dest-authfile"} <= found.copy_flags
    assert {"--scoped", "--keep-going"} <= found.sync_flags


def test_a_missing_skopeo_says_how_to_install_it() -> None:
    error = error_of(lambda: Skopeo.probe("no-such-skopeo", options=Options(), run=Processes().run))
    assert isinstance(error, UsageError)
    assert error.message == "no-such-skopeo not found"
    assert "apt-get install skopeo" in error.hint


@pytest.mark.parametrize("missing", ["--preserve-digests", "--multi-arch", "--digestfile"])
def test_a_skopeo_that_lacks_a_flag_is_too_old_whatever_its_version(
    tmp_path: Path, missing: str
) -> None:
    flags = sorted({"--preserve-digests", "--multi-arch", "--digestfile"} - {missing})
    old = script(
        tmp_path / "skopeo",
        f'[ "$1" = --version ] && echo skopeo version 9.9.9\n'
        f'[ "$1" = copy ] && printf "      %s string  explained\\n" {" ".join(flags)}',
    )
    error = error_of(lambda: Skopeo.probe(old, options=Options(), run=Processes().run))
    assert isinstance(error, UsageError)
    assert error.message == f"skopeo 1.6 or later is needed, found 9.9.9 without {missing}"


def test_a_skopeo_without_sync_has_no_sync_flags(tmp_path: Path) -> None:
    real = shutil.which("skopeo")
    no_sync = script(tmp_path / "skopeo", f'[ "$1" = sync ] && exit 1\nexec {real} "$@"')
    found = Skopeo.probe(no_sync, options=Options(), run=Processes().run)
    assert found.sync_flags == frozenset()


def test_a_missing_trust_policy_is_said_before_any_image(tmp_path: Path) -> None:
    error = error_of(lambda: probe(Options(policy=str(tmp_path / "none"))))
    assert isinstance(error, UsageError)
    assert "loading trust policy" in error.message
    assert "--insecure-policy" in error.hint


def test_insecure_policy_needs_no_policy_file(tmp_path: Path) -> None:
    probe(Options(policy=str(tmp_path / "none"), insecure_policy=True))


@pytest.mark.parametrize(
    "options", [Options(authfile="/nonexistent"), Options(dest_cert_dir="/nonexistent")]
)
def test_what_skopeo_would_silently_take_for_empty_is_refused(options: Options) -> None:
    assert isinstance(error_of(lambda: probe(options)), UsageError)


# --- the command line


def test_global_flags_stand_before_copy_and_every_other_behind_it() -> None:
    options = Options(
        authfile="/a.json",
        dest_tls_verify=False,
        dest_cert_dir="/certs",
        retry_times=2,
        policy="/p.json",
        insecure_policy=True,
        command_timeout="10m",
    )
    found = Skopeo(
        executable="/bin/skopeo",
        version="1.9.3",
        copy_flags=frozenset(),
        sync_flags=frozenset(),
        options=options,
        run=Processes().run,
    )
    expected = (
        "/bin/skopeo --insecure-policy --policy /p.json --command-timeout 10m copy"
        " --all --preserve-digests --retry-times 2 --dest-authfile /a.json"
        " --dest-cert-dir /certs --dest-tls-verify=false --digestfile /d"
        " dir:/out/lib/app:v1 docker://h:1/lib/app:v1"
    )
    actual = found.copy_command(SOURCE, "h:1/lib/app:v1", digestfile="/d")
    assert " ".join(actual) == expected


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        (Mode.ALL, "--all --preserve-digests"),
        (Mode.INDEX_ONLY, "--multi-arch index-only --preserve-digests"),
        (Mode.CONVERT, "--format v2s2"),
    ],
)
def test_without_options_the_command_has_only_the_flags_of_its_mode(
    mode: Mode, expected: str
) -> None:
    found = probe(Options())
    command = found.copy_command(SOURCE, f"h:1/lib/app@sha256:{HEX}", mode=mode)
    assert " ".join(command[1:]) == (
        f"copy {expected} dir:{SOURCE} docker://h:1/lib/app@sha256:{HEX}"
    )


# --- copy, against a real registry


def test_a_copy_returns_the_digest_that_arrived_from_a_path_with_colons_and_blanks(
    tmp_path: Path,
) -> None:
    image = Image(tmp_path / "a b" / "lib" / "app:v1")
    with serve(tmp_path / "registry") as registry:
        pushed = probe().copy(str(image.path), f"{registry.host}/lib/app:v1")
        reference = f"docker://{registry.host}/lib/app:v1"
        there = skopeo("inspect", "--raw", "--tls-verify=false", reference)
    assert pushed == Digest.of(image.manifest)
    assert there.encode() == image.manifest


def test_a_copy_leaves_no_blob_info_cache_behind(tmp_path: Path) -> None:
    image = Image(tmp_path / "app:v1")
    with serve(tmp_path / "registry") as registry:
        probe().copy(str(image.path), f"{registry.host}/app:v1")
        assert not (tmp_path / "cache").exists()
        command = probe().copy_command(str(image.path), f"{registry.host}/other:v1")
        subprocess.run(command, check=True, capture_output=True)
        assert list((tmp_path / "cache/containers/cache").iterdir()) != []


def test_the_default_authfile_of_root_stays_where_skopeo_looks_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    default = tmp_path / "auth.json"
    monkeypatch.setattr(command, "_ROOTS_AUTHFILE", str(default))
    found = {"HOME": "/root"}
    moved = {**found, "XDG_DATA_HOME": "/dev/null", "_CONTAINERS_ROOTLESS_UID": "1"}
    assert command.without_cache(found, authfile=None) == moved
    default.write_text("{}")
    assert command.without_cache(found, authfile=None) == found
    assert command.without_cache(found, authfile="given") == moved
    elsewhere = {"XDG_RUNTIME_DIR": "/run/user/0"}
    assert command.without_cache(found | elsewhere, authfile=None) == moved | elsewhere


def test_the_command_line_that_is_printed_does_what_copy_does(tmp_path: Path) -> None:
    image = Image(tmp_path / "app:v1")
    found = probe()
    with serve(tmp_path / "registry") as registry:
        destination = f"{registry.host}/app:v1"
        digestfile = tmp_path / "digest"
        command = found.copy_command(str(image.path), destination, digestfile=str(digestfile))
        subprocess.run(command, check=True, capture_output=True)
        assert digestfile.read_text() == found.copy(str(image.path), destination)


def test_a_nested_index_arrives_inner_first_then_the_outer_alone(tmp_path: Path) -> None:
    image = Image(tmp_path / "inner")
    image.become_index()
    inner = Digest.of(image.manifest)
    outer_path = tmp_path / "outer"
    outer_path.mkdir()
    image.become_index(DOCKER_LIST)
    (outer_path / "manifest.json").write_bytes(image.manifest)
    (image.path / "manifest.json").write_bytes(
        (image.path / f"{inner.hex}.manifest.json").read_bytes()
    )
    found = probe()
    with serve(tmp_path / "registry") as registry:
        repository = f"{registry.host}/app"
        assert found.copy(str(image.path), f"{repository}@{inner}") == inner
        pushed = found.copy(str(outer_path), f"{repository}:v1", mode=Mode.INDEX_ONLY)
        puts = [path for method, path, _ in registry.requests() if method == "PUT"][-1:]
    assert pushed == Digest.of(image.manifest)
    assert puts == ["/v2/app/manifests/v1"]


def test_schema_1_is_converted_under_another_digest(tmp_path: Path) -> None:
    image = Image(tmp_path / "app:v1")
    history = '{"architecture":"amd64","id":"' + HEX + '","os":"linux"}'
    schema1 = orjson.dumps(
        {
            "schemaVersion": 1,
            "name": "app",
            "tag": "v1",
            "architecture": "amd64",
            "fsLayers": [{"blobSum": image.layer}],
            "history": [{"v1Compatibility": history}],
        }
    )
    (image.path / "manifest.json").write_bytes(schema1)
    with serve(tmp_path / "registry") as registry:
        pushed = probe().copy(str(image.path), f"{registry.host}/app:v1", mode=Mode.CONVERT)
        reference = f"docker://{registry.host}/app@{pushed}"
        arrived = orjson.loads(skopeo("inspect", "--raw", "--tls-verify=false", reference))
    assert pushed != Digest.of(schema1)
    assert (arrived["schemaVersion"], arrived["layers"][0]["digest"]) == (2, image.layer)


def test_wrong_credentials_are_permanent_and_an_authfile_opens_the_door(tmp_path: Path) -> None:
    image = Image(tmp_path / "app:v1")
    authfile = tmp_path / "auth.json"
    with serve(tmp_path / "registry", htpasswd=("user", "right")) as registry:
        destination = f"{registry.host}/app:v1"
        denied = error_of(lambda: probe().copy(str(image.path), destination))
        authfile.write_bytes(orjson.dumps({"auths": {registry.host: {"auth": "dXNlcjpyaWdodA=="}}}))
        options = Options(authfile=str(authfile), dest_tls_verify=False)
        pushed = probe(options).copy(str(image.path), destination)
    assert isinstance(denied, PermanentDestinationError)
    assert pushed == Digest.of(image.manifest)


def test_an_untrusted_certificate_is_permanent_and_a_cert_dir_makes_it_trusted(
    tmp_path: Path,
) -> None:
    image = Image(tmp_path / "app:v1")
    with serve(tmp_path / "registry", tls=True) as registry:
        destination = f"{registry.host}/app:v1"
        refused = error_of(lambda: probe(Options()).copy(str(image.path), destination))
        trusting = probe(Options(dest_cert_dir=str(registry.ca_dir)))
        pushed = trusting.copy(str(image.path), destination)
    assert isinstance(refused, PermanentDestinationError)
    assert "--dest-cert-dir" in refused.hint
    assert pushed == Digest.of(image.manifest)


def test_plain_http_where_tls_is_expected_names_the_flag(tmp_path: Path) -> None:
    image = Image(tmp_path / "app:v1")
    with serve(tmp_path / "registry") as registry:
        error = error_of(lambda: probe(Options()).copy(str(image.path), f"{registry.host}/app:v1"))
    assert isinstance(error, PermanentDestinationError)
    assert "--dest-tls-verify=false" in error.hint


# --- whose fault it was: the source's


def _unlink(path: Path) -> None:
    path.unlink()


def _append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"\n")


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def _become_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("damage", [_unlink, _append, _empty, _truncate, _become_directory])
@pytest.mark.parametrize("which", ["layer", "config", "child"])
def test_a_damaged_file_is_the_fault_of_the_source(
    tmp_path: Path,
    fake_registry: FakeRegistry,
    damage: Callable[[Path], None],
    which: str,
) -> None:
    image = Image(tmp_path / "app:v1.-")
    child = f"{Digest.of(image.manifest).hex}.manifest.json"
    image.become_index()
    names = {"layer": image.layer.hex, "config": image.config.hex, "child": child}
    damage(image.path / names[which])
    destination = f"{fake_registry.host}/a/b:t"
    error = error_of(lambda: probe().copy(str(image.path), destination))
    assert isinstance(error, SourceError), error.message


@pytest.mark.parametrize("content", [None, b"{", b"{}", b'{"schemaVersion":2,"manifests":[]}'])
def test_a_manifest_that_is_none_is_the_fault_of_the_source(
    tmp_path: Path, fake_registry: FakeRegistry, content: bytes | None
) -> None:
    image = Image(tmp_path / "app:v1")
    (image.path / "manifest.json").unlink()
    if content is not None:
        (image.path / "manifest.json").write_bytes(content)
    error = error_of(lambda: probe().copy(str(image.path), f"{fake_registry.host}/a/b:t"))
    assert isinstance(error, SourceError), error.message
    assert "PUT manifest" not in fake_registry.seen


def test_a_nested_index_is_nothing_that_another_try_would_help(
    tmp_path: Path, fake_registry: FakeRegistry
) -> None:
    image = Image(tmp_path / "app:v1")
    image.become_index()
    image.become_index(DOCKER_LIST)
    error = error_of(lambda: probe().copy(str(image.path), f"{fake_registry.host}/a/b:t"))
    assert isinstance(error, SourceError), error.message


# --- whose fault it was: the destination's

QUOTA = (
    "adding 5.0 MiB of storage resource, which when updated to current usage of 9.0 MiB "
    "will exceed the configured upper limit of 10.0 MiB."
)
IMMUTABLE = "Failed to process request due to 'b:t' configured as immutable."


def answer(code: str, message: str) -> bytes:
    return orjson.dumps({"errors": [{"code": code, "message": message}]})


FAULTS: dict[str, tuple[int | str, bytes, type[SkopeoDirError]]] = {
    "500": (500, b"<html>\nInternal\n</html>", TEMPORARY),
    "503 with JSON": (503, answer("UNAVAILABLE", "service unavailable"), TEMPORARY),
    "reset": ("reset", b"", TEMPORARY),
    "cut": ("cut", b"", TEMPORARY),
    "401": (401, answer("UNAUTHORIZED", "project a not found"), PERMANENT),
    "quota": (403, answer("DENIED", QUOTA), PERMANENT),
    "403": (403, b"<html>\nForbidden\n</html>", PERMANENT),
    "400": (400, answer("MANIFEST_INVALID", "manifest invalid"), PERMANENT),
    "immutable": (412, answer("PRECONDITION", IMMUTABLE), PERMANENT),
    "413": (413, b"<html>\n<body>Too Large</body></html>", PERMANENT),
    "415": (415, answer("OF_OUR_OWN", "never heard of"), PERMANENT),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("request_kind", ["HEAD", "POST", "PATCH", "PUT", "PUT manifest"])
def test_each_answer_to_each_request_is_temporary_or_permanent(
    tmp_path: Path, fake_registry: FakeRegistry, request_kind: str, fault: str
) -> None:
    image = Image(tmp_path / "app:v1", layer=os.urandom(500_000))
    status, body, expected = FAULTS[fault]
    fake_registry.fault = (request_kind, status, body)
    error = error_of(lambda: probe().copy(str(image.path), f"{fake_registry.host}/a/b:t"))
    assert type(error) is expected, error.message
    assert "<" not in error.message
    assert "\n" not in error.message
    assert "_state" not in error.message
    assert len(error.message) <= MAX_SENTENCE


@pytest.mark.parametrize("fault", ["503 with JSON", "cut", "quota", "immutable"])
@pytest.mark.parametrize("mode", [Mode.ALL, Mode.INDEX_ONLY])
def test_a_refused_index_says_why_though_skopeo_hides_it(
    tmp_path: Path, fake_registry: FakeRegistry, mode: Mode, fault: str
) -> None:
    image = Image(tmp_path / "app:v1")
    child = Digest.of(image.manifest)
    image.become_index()
    if mode is Mode.INDEX_ONLY:
        (image.path / f"{child.hex}.manifest.json").unlink()
    status, body, expected = FAULTS[fault]
    fake_registry.fault = ("PUT index", status, body)
    error = error_of(
        lambda: probe().copy(str(image.path), f"{fake_registry.host}/a/b:t", mode=mode)
    )
    assert type(error) is expected, error.message
    assert "must be converted" not in error.message


def test_a_quota_is_reported_in_harbors_own_words(
    tmp_path: Path, fake_registry: FakeRegistry
) -> None:
    image = Image(tmp_path / "app:v1")
    fake_registry.fault = ("PATCH", 403, answer("DENIED", QUOTA))
    error = error_of(lambda: probe().copy(str(image.path), f"{fake_registry.host}/a/b:t"))
    expected = f"writing blob: uploading layer chunked: denied: {QUOTA}"
    assert error.message == expected.rstrip(".")


def test_a_permanent_answer_is_asked_for_once(tmp_path: Path, fake_registry: FakeRegistry) -> None:
    image = Image(tmp_path / "app:v1")
    fake_registry.fault = ("PUT manifest", 412, answer("PRECONDITION", IMMUTABLE))
    error_of(lambda: probe().copy(str(image.path), f"{fake_registry.host}/a/b:t"))
    assert fake_registry.seen.count("PUT manifest") == 1


def test_a_destination_that_nobody_listens_at_is_temporary(tmp_path: Path) -> None:
    image = Image(tmp_path / "app:v1")
    with deaf_server() as (host, _):
        pass
    error = error_of(lambda: probe().copy(str(image.path), f"{host}/a/b:t"))
    assert type(error) is TEMPORARY
    assert error.message.endswith("connect: connection refused")


def test_a_destination_that_never_answers_is_temporary_after_the_command_timeout(
    tmp_path: Path,
) -> None:
    image = Image(tmp_path / "app:v1")
    found = probe(Options(dest_tls_verify=False, command_timeout="1s"))
    with deaf_server() as (host, _):
        error = error_of(lambda: found.copy(str(image.path), f"{host}/a/b:t"))
    assert type(error) is TEMPORARY


def fatal(message: str) -> str:
    """As logrus writes it to anything but a terminal."""
    quoted = message.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
    return f'time="2026-01-02T03:04:05Z" level=fatal msg="{quoted}"\n'


REUSE = f"trying to reuse blob sha256:{HEX} at destination: "
PING = f"{REUSE}pinging container registry h:1: "
UPLOAD = f"uploading layer to http://h:1/v2/a/b/blobs/uploads/x?digest=sha256%3A{HEX}: "

# Printed by skopeo 1.9.3, where a live test would be slow or needs a network; then what users of
# other versions reported (containers/skopeo issues 1137, 1708, 1836, 1901, 2054, 2627, 2723;
# container-libs issue 42; containers/common issue 263).
TEXTS: list[tuple[str, type[SkopeoDirError]]] = [
    (f"{PING}too many requests to registry", TEMPORARY),
    (f"{PING}invalid status code from registry 502 (Bad Gateway)", TEMPORARY),
    (f"{PING}invalid status code from registry 404 (Not Found)", PERMANENT),
    (f"{REUSE}failed to read from destination repository a/b: 429 (Too Many Requests)", TEMPORARY),
    ("writing blob: uploading layer chunked: toomanyrequests: rate exceeded", TEMPORARY),
    (f"writing blob: {UPLOAD}StatusCode: 429, <html>\n<head></head>\n</html>", TEMPORARY),
    (f"writing blob: {UPLOAD}name unknown", PERMANENT),
    ("writing manifest: uploading manifest t to h:1/a/b: manifest invalid", PERMANENT),
    (
        (
            "writing manifest list: uploading manifest t to h:1/a/b: errors:\ndigest invalid\n"
            "manifest blob unknown: blob unknown to registry"
        ),
        TEMPORARY,
    ),
    (f'{PING}Get "https://h:1/v2/": dial tcp: lookup h on 10.0.0.1:53: no such host', TEMPORARY),
    (f'{PING}Get "https://h:1/v2/": net/http: TLS handshake timeout', TEMPORARY),
    (f'{PING}Get "https://h:1/v2/": dial tcp 10.0.0.1:443: i/o timeout', TEMPORARY),
    (f'{PING}Get "https://h:1/v2/": http: server gave HTTP response to HTTPS client', PERMANENT),
    (f'{PING}Get "https://h:1/v2/": x509: certificate is not valid for any names', PERMANENT),
    (f'{PING}Get "https://h:1/v2/": remote error: tls: bad certificate', PERMANENT),
    (f'{REUSE}Get "h/token?account=admin&service=h": unsupported protocol scheme ""', PERMANENT),
    ("writing blob: happened during read: unexpected EOF", TEMPORARY),
    (
        (
            "Error writing blob: error happened during read: read tcp 10.0.0.2:37318->10.0.0.1:443:"
            " read: connection reset by peer"
        ),
        TEMPORARY,
    ),
    (
        (
            "Uploading manifest list failed, attempted the following formats: application/vnd."
            "docker.distribution.manifest.list.v2+json(uploading manifest 3.10.18-r0 to h/python: "
            "toomanyrequests: Rate exceeded)"
        ),
        TEMPORARY,
    ),
    (
        (
            "writing blob: uploading layer chunked: StatusCode: 400, "
            '"<html><body><h1>400 Bad request</h1>\\\\nYour browser ..."'
        ),
        PERMANENT,
    ),
    (
        (
            "unable to retrieve auth token: invalid username/password: unauthorized: "
            "authentication required"
        ),
        PERMANENT,
    ),
    (
        (
            "Invalid destination name docker://h:1/A:t: invalid reference format: "
            "repository name must be lowercase"
        ),
        PERMANENT,
    ),
    (f"reading blob sha256:{HEX}: read {SOURCE}/{HEX}: input/output error", SourceError),
    ("Digest of source image's manifest would not match destination reference", SourceError),
    (
        (
            'Manifest list must be converted to type "application/vnd.oci.image.index.v1+json" to'
            ' be written to destination, but we cannot modify it: "Instructed to preserve digests"'
        ),
        ChildrenFirst,
    ),
    (
        (
            "initializing destination docker://h:1/a/b:t: getting username and password: 1 error "
            'occurred:\n\t* reading JSON file "/auth.json": unmarshaling JSON at "/auth.json"'
        ),
        UsageError,
    ),
    ("unknown flag: --nope", UsageError),
    ("something that nobody has seen yet", TEMPORARY),
]


@pytest.mark.parametrize(("message", "expected"), TEXTS)
def test_a_known_text_has_its_class(message: str, expected: type[SkopeoDirError]) -> None:
    assert type(explain(fatal(message), source=SOURCE)) is expected


def test_a_missing_file_elsewhere_is_not_the_fault_of_the_source() -> None:
    error = explain(fatal("open /out/lib/app:v10/x: no such file"), source=SOURCE)
    assert not isinstance(error, SourceError)


def test_the_last_fatal_line_speaks_and_is_unescaped() -> None:
    stderr = fatal("first") + fatal('Get "https://h:1/": EOF.') + 'time="" level=warning msg="w"\n'
    assert explain(stderr, source=SOURCE).message == 'Get "https://h:1/": EOF'


def test_what_is_no_log_line_is_still_reported() -> None:
    assert explain("panic: oh\nno\n", source=SOURCE).message == "no"
    assert explain("", source=SOURCE).message == "skopeo failed and did not say why"


def test_no_secret_of_a_url_gets_into_a_sentence() -> None:
    message = 'Get "https://user:pass@h/token?account=admin&x=1": EOF, /v2/u?_state=abc%3D: no'
    actual = explain(fatal(message), source=SOURCE).message
    assert actual == 'Get "https://h/token": EOF, /v2/u: no'


def test_a_long_text_keeps_where_and_why() -> None:
    actual = explain(fatal(f"where {'x' * 5000} why"), source=SOURCE).message
    assert actual.startswith("where ")
    assert actual.endswith(" why")
    assert len(actual) == MAX_SENTENCE


# --- what a runner may return


def runner(finished: Finished) -> Run:
    def run(*_: object, **__: object) -> Finished:
        return finished

    return run


def with_runner(run: Run) -> Skopeo:
    return Skopeo(
        executable="skopeo",
        version="0",
        copy_flags=frozenset(),
        sync_flags=frozenset(),
        options=Options(),
        run=run,
    )


def test_a_killed_skopeo_is_worth_another_try() -> None:
    error = error_of(lambda: with_runner(runner(Finished(-9, "", ""))).copy(SOURCE, "h:1/a:t"))
    assert type(error) is TEMPORARY
    assert error.message == "skopeo was killed by signal 9"


def test_a_success_without_a_digest_is_no_success() -> None:
    error = error_of(lambda: with_runner(runner(Finished(0, "done", ""))).copy(SOURCE, "h:1/a:t"))
    assert type(error) is UsageError


# --- processes


def alive(pid: int) -> bool:
    """True if `pid` is there and no zombie that its new parent has not yet reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


def test_output_of_any_length_is_read_from_its_end() -> None:
    finished = Processes().run(
        ["sh", "-c", "head -c 3000000 /dev/zero | tr '\\0' x >&2; echo y >&2"]
    )
    assert len(finished.stderr) == MAX_OUTPUT
    assert finished.stderr.endswith("xy\n")


def test_a_process_has_no_stdin_its_own_group_and_our_environment() -> None:
    code = "import os,sys; print(sys.stdin.read(), os.getpgrp() == os.getpid(), os.environ['HOME'])"
    finished = Processes().run([sys.executable, "-c", code])
    assert finished == Finished(0, f" True {os.environ['HOME']}\n", "")


def test_a_command_that_cannot_be_started_is_one_sentence() -> None:
    error = error_of(lambda: Processes().run(["true", "x" * 3_000_000]))
    assert isinstance(error, UsageError)
    assert error.message == "cannot start true: Argument list too long"


def test_stop_ends_every_copy_in_flight_as_interrupted_and_lets_no_other_start(
    tmp_path: Path,
) -> None:
    image = Image(tmp_path / "app:v1")
    processes = Processes()
    found = probe(PLAIN_HTTP, processes)
    errors: list[SkopeoDirError] = []
    with deaf_server() as (host, listener):

        def copy() -> None:
            errors.append(error_of(lambda: found.copy(str(image.path), f"{host}/a/b:t")))

        threads = [threading.Thread(target=copy) for _ in range(3)]
        for thread in threads:
            thread.start()
        connections = [listener.accept()[0] for _ in threads]  # so every skopeo is running
        began = time.monotonic()
        processes.stop(signal.SIGTERM)
        took = time.monotonic() - began
        for thread in threads:
            thread.join()
        for connection in connections:
            connection.close()
        errors.append(error_of(lambda: found.copy(str(image.path), f"{host}/a/b:t")))
    assert [type(error) for error in errors] == [Interrupted] * 4
    assert {error.exit_code for error in errors} == {143}
    assert took < 2


def test_stop_kills_what_does_not_heed_the_first_signal(tmp_path: Path) -> None:
    processes = Processes()
    ready = tmp_path / "ready"
    errors: list[SkopeoDirError] = []
    stubborn = [
        "sh",
        "-c",
        f"trap '' TERM; echo $$ > {ready}.new; mv {ready}.new {ready}; sleep 60",
    ]
    thread = threading.Thread(
        target=lambda: errors.append(error_of(lambda: processes.run(stubborn)))
    )
    thread.start()
    assert wait_until(ready.exists, 10)
    processes.stop(signal.SIGINT, grace_seconds=0.1)
    thread.join(5)
    assert [error.exit_code for error in errors] == [130]
    assert not alive(int(ready.read_text()))


def test_what_had_succeeded_before_the_stop_stays_a_success(tmp_path: Path) -> None:
    processes = Processes()
    ready = tmp_path / "ready"
    results: list[Finished] = []
    heeding = ["sh", "-c", f"trap 'exit 0' TERM; touch {ready}; while :; do sleep 0.01; done"]
    thread = threading.Thread(target=lambda: results.append(processes.run(heeding)))
    thread.start()
    assert wait_until(ready.exists, 10)
    processes.stop(signal.SIGTERM)
    thread.join(5)
    assert [result.returncode for result in results] == [0]


@pytest.mark.parametrize("by_digest", [False, True])
def test_nothing_is_asked_before_its_turn_which_ends_with_the_last_request(
    tmp_path: Path, fake_registry: FakeRegistry, *, by_digest: bool
) -> None:
    image = Image(tmp_path / "app:v1")
    image.become_index()
    reference = f"@{Digest.of(image.manifest)}" if by_digest else ":t"
    turns = threading.Semaphore(0)
    turn = Turn(turns)
    ended: dict[str, bool] = {}

    def before_answer(kind: str) -> None:
        if kind in ("PUT manifest", "PUT index"):
            ended[kind] = turns.acquire(timeout=0.2 if kind == "PUT manifest" else 10)

    fake_registry.before_answer = before_answer
    found = probe()
    copy = partial(found.copy, str(image.path), f"{fake_registry.host}/a/b{reference}", turn=turn)
    thread = threading.Thread(target=copy)
    thread.start()
    time.sleep(0.3)
    asked_before = list(fake_registry.seen)
    turns.release()
    thread.join()
    assert asked_before == []
    assert ended == {"PUT manifest": False, "PUT index": True}
    assert turn.waited_seconds > 0.2
    assert not turns.acquire(blocking=False), "a turn ends once"


def test_a_stop_ends_who_waits_for_a_turn(tmp_path: Path) -> None:
    image = Image(tmp_path / "app:v1")
    processes = Processes()
    found = probe(PLAIN_HTTP, processes)
    turns = threading.Semaphore(1)
    errors: list[SkopeoDirError] = []
    with deaf_server() as (host, listener):

        def copy() -> None:
            errors.append(
                error_of(lambda: found.copy(str(image.path), f"{host}/a/b:t", turn=Turn(turns)))
            )

        threads = [threading.Thread(target=copy, daemon=True) for _ in range(3)]
        for thread in threads:
            thread.start()
        connection, _ = listener.accept()
        with connection:
            time.sleep(0.2)  # the others are up
            began = time.monotonic()
            processes.stop(signal.SIGTERM)
            took = time.monotonic() - began
            for thread in threads:
                thread.join(10)
    assert [type(error) for error in errors] == [Interrupted] * 3
    assert took < 2


KILLED = """
import sys, threading
from exporter.skopeo import Options, Processes, Skopeo
skopeo = Skopeo.probe(options=Options(dest_tls_verify=False), run=Processes().run)
thread = threading.Thread(target=skopeo.copy, args=sys.argv[1:])
thread.start()
thread.join()
"""


def test_no_skopeo_survives_our_sigkill_by_a_second(tmp_path: Path) -> None:
    image = Image(tmp_path / "app:v1")
    with deaf_server() as (host, listener):
        parent = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(image.path), f"{host}/a/b:t"],
            cwd=Path(__file__).parent.parent,
        )
        try:
            connection, _ = listener.accept()
            with connection:
                tasks = Path(f"/proc/{parent.pid}/task").glob("*/children")
                children = [int(pid) for task in tasks for pid in task.read_text().split()]
        finally:
            parent.kill()
            parent.wait()
        assert len(children) == 1
        assert wait_until(lambda: not alive(children[0]), 1.0)
