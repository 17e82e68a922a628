"""What the client makes of a real registry, and of one that is slow, odd, hostile or not there."""

import email.utils
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qs, urlsplit

import orjson
import pytest

from exporter.credentials import Credentials
from exporter.digest import Digest
from exporter.distribution import Client
from exporter.distribution.answers import clean
from exporter.distribution.proxies import Proxies
from exporter.distribution.tokens import Authenticator, Challenge
from exporter.distribution.transport import Transport
from exporter.errors import (
    DestinationError,
    PermanentDestinationError,
    TemporaryDestinationError,
    UsageError,
)
from tests.builders import FIXTURES, StorageBuilder, unpack_fixture
from tests.fault_proxy import Cut, Fault, Hang, Refuse, Reset, fault_proxy
from tests.registry import Request, serve, skopeo_environment
from tests.token_server import token_realm

ANN = Credentials("ann", "a:secret")
MANIFEST = b'{"schemaVersion":2}'
DIGEST = Digest.of(MANIFEST)
UPLOADS = f"/v2/b/blobs/uploads/?mount={DIGEST}&from=a"
FOUND = ("Docker-Content-Digest", DIGEST)


class Asked(NamedTuple):
    """A request that a fake registry was sent."""

    method: str
    path: str
    headers: Message
    body: bytes


class Said(NamedTuple):
    """What it answers."""

    status: int
    headers: Sequence[tuple[str, str]] = ()
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Fake:
    """A running fake; `asked` is in the order of the answers."""

    host: str
    asked: list[Asked] = field(default_factory=list)

    def seen(self) -> list[str]:
        return [f"{asked.method} {asked.path}" for asked in self.asked]


@contextmanager
def fake(
    say: Callable[[Asked], Said],
    *,
    address: str = "127.0.0.1",
    context: ssl.SSLContext | None = None,
) -> Iterator[Fake]:
    """Answer every request by `say` until the context ends: what no real registry would do."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            asked = Asked(self.command, self.path, self.headers, body)
            running.asked.append(asked)
            said = say(asked)
            self.send_response(said.status)
            for name, value in said.headers:
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(said.body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(said.body)

        do_GET = do_HEAD = do_POST = do_DELETE = answer  # noqa: N815 - inherited

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - inherited
            pass

    class Server(ThreadingHTTPServer):
        address_family = socket.AF_INET6 if ":" in address else socket.AF_INET

        def handle_error(self, request: object, client_address: object) -> None:
            pass  # a client that went away, or a handshake that failed: what some tests are about

    with Server((address, 0), Handler) as server:
        name = f"[{address}]" if ":" in address else address
        running = Fake(f"{name}:{server.server_port}")
        if context is not None:
            server.socket = context.wrap_socket(
                server.socket, server_side=True, do_handshake_on_connect=False
            )
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield running
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def plain(
    host: str, credentials: Credentials | None = None, *, timeout_seconds: float = 20.0
) -> Iterator[Client]:
    """Give a client that has found out that its registry speaks plain HTTP."""
    with Client(
        host, credentials=credentials, tls_verify=False, timeout_seconds=timeout_seconds
    ) as client:
        client.ping()
        yield client


def registry(say: Callable[[Asked], Said]) -> Callable[[Asked], Said]:
    """Answer the pings, and the rest by `say`."""
    return lambda asked: Said(200) if asked.path == "/v2/" else say(asked)


def fails(call: Callable[[], object]) -> DestinationError:
    """Return the error that a call ends with, after looking at its form."""
    with pytest.raises(DestinationError) as caught:
        call()
    message = caught.value.message
    assert message.isprintable()
    assert len(message) <= 500
    return caught.value


def look_up(client: Client) -> Digest | None:
    return client.manifest_digest("a", "1")


def mount(client: Client) -> bool:
    return client.mount("b", DIGEST, "a")


# A real registry


def test_every_kind_of_manifest_has_the_digest_that_the_registry_said(tmp_path: Path) -> None:
    rows = [orjson.loads(line) for line in (FIXTURES / "registry.jsonl").read_bytes().splitlines()]
    with serve(unpack_fixture(tmp_path)) as real, plain(real.host) as client:
        found = [client.manifest_digest(row["repository"], row["tag"]) for row in rows]
    assert [row["digest"] for row in rows] == found


def test_a_lookup_is_one_head(tmp_path: Path) -> None:
    digest = StorageBuilder(tmp_path).image("a", "1", [b"layer"])
    with serve(tmp_path) as real, plain(real.host) as client:
        before = len(real.requests())
        assert [digest, digest] == [look_up(client), client.manifest_digest("a", digest)]
        asked = real.requests()[before:]
    assert asked == [
        Request("HEAD", "/v2/a/manifests/1", 200),
        Request("HEAD", f"/v2/a/manifests/{digest}", 200),
    ]


def test_what_is_not_there_is_none_and_no_error(tmp_path: Path) -> None:
    StorageBuilder(tmp_path).image("a", "1", [b"layer"])
    with serve(tmp_path) as real, plain(real.host) as client:
        absent = [("a", "2"), ("a", DIGEST), ("nobody/knows/it", "1")]
        assert [client.manifest_digest(*names) for names in absent] == [None] * 3


def test_a_mounted_blob_is_in_the_other_repository(tmp_path: Path) -> None:
    storage = StorageBuilder(tmp_path)
    layer = storage.layer("a", b"layer")
    with serve(tmp_path) as real, plain(real.host) as client:
        assert client.mount("team/b", layer, "a") is True
        asked = client.request("HEAD", f"/v2/team/b/blobs/{layer}", what="")
    assert asked.status == 200


def test_a_mount_that_the_registry_turned_into_an_upload_is_cancelled(tmp_path: Path) -> None:
    with serve(tmp_path) as real, plain(real.host) as client:
        assert mount(client) is False
        opened, cancelled = real.requests()[-2:]
    assert (opened.status, cancelled.method, cancelled.status) == (202, "DELETE", 204)


@pytest.mark.parametrize("credentials", [None, Credentials("ann", "wrong")])
def test_basic_authentication_lets_in_who_knows_the_password(
    tmp_path: Path, credentials: Credentials | None
) -> None:
    StorageBuilder(tmp_path).image("a", "1", [b"layer"])
    with serve(tmp_path, htpasswd=(ANN.username, ANN.password)) as real:
        with plain(real.host, ANN) as client:
            before = len(real.requests())
            assert look_up(client) is not None
            assert len(real.requests()) - before == 1, "no challenge is waited for again"
        with Client(real.host, credentials=credentials, tls_verify=False) as client:
            error = fails(client.ping)
    assert (error.exit_code, "--authfile" in error.hint) == (4, True)
    assert error.message == (f"cannot use {real.host}: 401 UNAUTHORIZED authentication required")


def test_tokens_are_asked_for_once_a_scope(tmp_path: Path) -> None:
    storage = StorageBuilder(tmp_path)
    storage.image("a", "1", [b"layer"])
    layer = storage.layer("a", b"layer")
    with (
        serve(tmp_path) as real,
        token_realm(real.host, username=ANN.username, password=ANN.password) as realm,
        plain(realm.host, ANN) as client,
    ):
        for _ in range(3):
            assert look_up(client) is not None
            assert client.mount("b", layer, "a") is True
        queries = [urlsplit(path) for _, path, status in realm.requests if status == 200]
    scopes = [parse_qs(url.query).get("scope") for url in queries if url.path == "/token"]
    assert scopes == [
        None,
        ["repository:a:pull"],
        ["repository:b:pull,push", "repository:a:pull"],
    ]


@pytest.mark.parametrize("credentials", [None, Credentials("ann", "wrong")])
def test_a_realm_that_refuses_is_a_matter_of_credentials(
    tmp_path: Path, credentials: Credentials | None
) -> None:
    with (
        serve(tmp_path) as real,
        token_realm(real.host, username=ANN.username, password=ANN.password) as realm,
        Client(realm.host, credentials=credentials, tls_verify=False) as client,
    ):
        error = fails(client.ping)
    assert (error.exit_code, "--authfile" in error.hint) == (4, True)


def test_many_threads_may_use_one_client(tmp_path: Path) -> None:
    digest = StorageBuilder(tmp_path).image("a", "1", [b"layer"])
    with (
        serve(tmp_path) as real,
        token_realm(real.host, username=ANN.username, password=ANN.password) as realm,
        plain(realm.host, ANN) as client,
        ThreadPoolExecutor(8) as pool,
    ):
        found = list(pool.map(lambda _: look_up(client), range(200)))
        tokens = [path for _, path, _ in realm.requests if path.startswith("/token")]
    assert found == [digest] * 200
    assert len(tokens) <= 1 + 8


# TLS


def test_a_certificate_of_ones_own_needs_its_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with serve(tmp_path / "root", tls=True) as real:
        with Client(real.host) as client:
            error = fails(client.ping)
        with Client(real.host, cert_dir=str(real.ca_dir)) as client:
            client.ping()
        with Client(real.host, tls_verify=False) as client:
            client.ping()
        usual = tmp_path / "home/.config/containers/certs.d"
        usual.mkdir(parents=True)
        (usual / real.host).symlink_to(real.ca_dir)
        with Client(real.host) as client:
            client.ping()
        assert {status for *_, status in real.requests()[1:]} == {200}, "never plain HTTP"
    assert (error.exit_code, "--dest-cert-dir" in error.hint) == (4, True)
    assert "certificate is not trusted" in error.message


def test_a_certificate_for_another_name_is_refused(tmp_path: Path) -> None:
    with (
        serve(tmp_path / "root", tls=True) as real,
        socket.create_server(("127.0.0.2", 0)) as listener,
        Client(f"127.0.0.2:{listener.getsockname()[1]}", cert_dir=str(real.ca_dir)) as client,
    ):
        thread = threading.Thread(target=_pipe, args=(listener, real.host))
        thread.start()
        error = fails(client.ping)
        thread.join()
    assert (error.exit_code, "name that its certificate has" in error.hint) == (4, True)


def _pipe(listener: socket.socket, host: str) -> None:
    """Pass one TLS handshake on to another address."""
    address, _, port = host.rpartition(":")
    client, _ = listener.accept()
    with client, socket.create_connection((address, int(port))) as server:
        server.sendall(client.recv(1 << 16))
        client.sendall(server.recv(1 << 16))
        client.recv(1 << 16)


def test_plain_http_is_spoken_only_where_it_was_allowed(tmp_path: Path) -> None:
    with serve(tmp_path) as real, Client(real.host) as client:
        before = len(real.requests())
        error = fails(client.ping)
        assert real.requests()[before:] == []
    assert (error.exit_code, "--dest-tls-verify=false" in error.hint) == (4, True)
    assert error.message == f"cannot use {real.host}: it does not speak TLS"


def certify(directory: Path, name: str) -> None:
    """Make `name.cert` and `name.key`, and the certificate again as an authority, `ca.crt`."""
    subprocess.run(
        ["openssl", "req", "-x509", "-nodes", "-newkey", "ec",
         "-pkeyopt", "ec_paramgen_curve:P-256", "-subj", "/CN=127.0.0.1",
         "-addext", "subjectAltName=IP:127.0.0.1",
         "-keyout", f"{directory}/{name}.key", "-out", f"{directory}/{name}.cert"],
        check=True, capture_output=True,
    )  # fmt: skip
    (directory / "ca.crt").write_bytes((directory / f"{name}.cert").read_bytes())


def test_a_client_certificate_is_shown_to_who_asks_for_it(tmp_path: Path) -> None:
    certify(tmp_path, "client")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=f"{tmp_path}/ca.crt")
    context.load_cert_chain(f"{tmp_path}/client.cert", f"{tmp_path}/client.key")
    context.verify_mode = ssl.CERT_REQUIRED
    # In 1.3 the handshake is over before the refusal, which may be lost with the connection.
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    authority = tmp_path / "authority"
    authority.mkdir()
    (tmp_path / "ca.crt").rename(authority / "ca.crt")
    with fake(registry(lambda _: Said(404)), context=context) as running:
        with Client(running.host, cert_dir=str(authority)) as client:
            error = fails(client.ping)
        (tmp_path / "ca.crt").write_bytes((authority / "ca.crt").read_bytes())
        with Client(running.host, cert_dir=str(tmp_path)) as client:
            client.ping()
    assert running.seen() == ["GET /v2/", "GET /v2/"]
    assert error.exit_code == 4


@pytest.mark.parametrize("name", ["ca.crt", "client.cert"])
def test_a_damaged_certificate_is_a_usage_error(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("no certificate")
    (tmp_path / "client.key").write_text("no key")
    with pytest.raises(UsageError, match=f"{name} cannot be used"):
        Client("127.0.0.1:1", cert_dir=str(tmp_path))


def test_a_directory_of_certificates_must_exist_and_be_complete(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="absent cannot be read"):
        Client("127.0.0.1:1", cert_dir=f"{tmp_path}/absent")
    (tmp_path / "client.cert").write_text("")
    with pytest.raises(UsageError, match=r"no client\.key beside it"):
        Client("127.0.0.1:1", cert_dir=str(tmp_path))


# Nobody there, or somebody else


@pytest.mark.parametrize("tls_verify", [True, False])
def test_a_closed_port_is_temporary(*, tls_verify: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        host = f"127.0.0.1:{listener.getsockname()[1]}"
    with Client(host, tls_verify=tls_verify) as client:
        error = fails(client.ping)
    assert (error.exit_code, error.message) == (5, f"cannot use {host}: connection refused")


def test_a_name_that_nobody_knows_is_temporary() -> None:
    with Client("registry.invalid:5000") as client:
        error = fails(client.ping)
    assert error.exit_code == 5
    assert error.message == "cannot use registry.invalid:5000: its name cannot be resolved"


def test_a_server_that_never_answers_is_temporary() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        host = f"127.0.0.1:{listener.getsockname()[1]}"
        with Client(host, tls_verify=False, timeout_seconds=0.2) as client:
            error = fails(client.ping)
    assert (error.exit_code, error.message) == (5, f"cannot use {host}: no answer in time")


@pytest.mark.parametrize(("status", "exit_code"), [(403, 4), (404, 4), (429, 5), (503, 5)])
def test_a_ping_that_fails_ends_the_run_with_its_own_exit_code(status: int, exit_code: int) -> None:
    with (
        fake(lambda _: Said(status)) as running,
        Client(running.host, tls_verify=False) as client,
    ):
        assert fails(client.ping).exit_code == exit_code


def test_an_ipv6_address_is_a_host() -> None:
    say = registry(lambda _: Said(200, [FOUND]))
    with fake(say, address="::1") as running, plain(running.host) as client:
        assert look_up(client) == DIGEST


# Failures that pass, and failures that stay


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
@pytest.mark.parametrize("ask", [look_up, mount])
def test_a_status_that_may_pass_is_temporary_and_asked_once(
    status: int, ask: Callable[[Client], object]
) -> None:
    with fake(registry(lambda _: Said(status))) as running, plain(running.host) as client:
        before = len(running.asked)
        error = fails(lambda: ask(client))
        assert len(running.asked) - before == 1
    assert (type(error), error.exit_code) == (TemporaryDestinationError, 5)


@pytest.mark.parametrize("status", [400, 401, 403, 405, 409, 412, 413, 415, 418])
def test_any_other_refusal_of_a_lookup_is_permanent_and_asked_once(status: int) -> None:
    with fake(registry(lambda _: Said(status))) as running, plain(running.host) as client:
        before = len(running.asked)
        error = fails(lambda: look_up(client))
        assert len(running.asked) - before == 1
    assert (type(error), str(status) in error.message) == (PermanentDestinationError, True)


@pytest.mark.parametrize("status", [400, 404, 405])
def test_a_registry_that_does_not_mount_gets_an_upload(status: int) -> None:
    with fake(registry(lambda _: Said(status))) as running, plain(running.host) as client:
        assert mount(client) is False
        assert running.seen()[-1] == f"POST {UPLOADS}"


def test_the_registrys_own_words_are_quoted() -> None:
    body = orjson.dumps({"errors": [{"code": "DENIED", "message": "quota exceeded"}]})
    with fake(registry(lambda _: Said(403, body=body))) as running, plain(running.host) as client:
        error = fails(lambda: mount(client))
    assert error.message == f"cannot mount {DIGEST} into b: 403 DENIED quota exceeded"


@pytest.mark.parametrize(
    "body",
    [
        orjson.dumps({"errors": [{"code": "\x1b[31m", "message": "a\r\nb\x00\u202e\u2028" * 9}]}),
        orjson.dumps({"errors": [{"code": "X", "message": "m" * (1 << 20)}]}),
        orjson.dumps({"errors": [{"code": {"a": [1]}, "message": None}]}),
        b'{"errors": []}',
        b'{"errors": [1]}',
        b'{"errors": {"a": 1}}',
        b"[" * 100_000,
        b"\xff\xfe<html>",
        b"x" * (6 << 20),
    ],
    ids=range(9),
)
def test_a_hostile_error_is_still_one_short_line(body: bytes) -> None:
    with fake(registry(lambda _: Said(400, body=body))) as running, plain(running.host) as client:
        fails(lambda: client.manifest_digest("a", "1"))
        answer = client.request("GET", "/v2/a/manifests/1", what="")
        assert answer.status == 400
        assert len(answer.body) <= 4 << 20


@pytest.mark.parametrize(
    ("value", "low", "high"),
    [
        ("7", 7.0, 7.0),
        (" 0 ", 0.0, 0.0),
        ("99999999999999999999", 300.0, 300.0),
        # Made when tests are collected, maybe minutes before this one runs.
        (email.utils.formatdate(time.time() + 290, usegmt=True), 1.0, 290.0),
        (email.utils.formatdate(time.time() - 100, usegmt=True), 0.0, 0.0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 300.0, 300.0),
    ],
    ids=["seconds", "zero", "endless", "soon", "past", "far"],
)
def test_retry_after_is_seconds_or_a_date_and_bounded(value: str, low: float, high: float) -> None:
    say = registry(lambda _: Said(429, [("Retry-After", value)]))
    with fake(say) as running, plain(running.host) as client:
        error = fails(lambda: look_up(client))
    assert isinstance(error, TemporaryDestinationError)
    assert error.retry_after_seconds is not None
    assert low <= error.retry_after_seconds <= high


def test_a_retry_after_without_a_zone_is_gmt_wherever_we_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    soon = email.utils.formatdate(time.time() + 100)  # "-0000": the zone is not known
    say = registry(lambda _: Said(429, [("Retry-After", soon)]))
    with fake(say) as running, plain(running.host) as client, monkeypatch.context() as elsewhere:
        elsewhere.setenv("TZ", "Etc/GMT-5")
        time.tzset()
        error = fails(lambda: look_up(client))
    time.tzset()
    assert isinstance(error, TemporaryDestinationError)
    assert error.retry_after_seconds is not None
    assert 40.0 <= error.retry_after_seconds <= 100.0


@pytest.mark.parametrize("value", ["", "-1", "soon", "1.5", "\u00b2", "Mon, 99 Foo 2026 99:99:99"])
def test_a_retry_after_that_says_nothing_is_none(value: str) -> None:
    say = registry(lambda _: Said(503, [("Retry-After", value)]))
    with fake(say) as running, plain(running.host) as client:
        error = fails(lambda: look_up(client))
    assert isinstance(error, TemporaryDestinationError)
    assert error.retry_after_seconds is None


@pytest.mark.parametrize("fault", [Reset(), Hang(), Cut(), Refuse(502)])
@pytest.mark.parametrize("ask", [look_up, mount])
def test_a_connection_that_breaks_is_temporary(
    tmp_path: Path, fault: Fault, ask: Callable[[Client], object]
) -> None:
    def rule(_method: str, path: str, _count: int) -> Fault | None:
        return None if path == "/v2/" else fault

    StorageBuilder(tmp_path).image("a", "1", [b"layer"])
    with (
        serve(tmp_path) as real,
        fault_proxy(real.host, rule=rule) as proxy,
        plain(proxy.host, timeout_seconds=0.5) as client,
    ):
        if ask is look_up and isinstance(fault, Cut):
            assert look_up(client) is not None  # the answer to a HEAD has no body to cut
        elif ask is mount and isinstance(fault, Cut):
            assert mount(client) is False  # 202 with an empty body
        else:
            assert fails(lambda: ask(client)).exit_code == 5


def test_a_body_that_was_cut_is_temporary_and_never_hashed(tmp_path: Path) -> None:
    def rule(method: str, path: str, _count: int) -> Fault | None:
        return Cut(after=5) if method == "GET" and path != "/v2/" else None

    StorageBuilder(tmp_path).image("a", "1", [b"layer"])
    with (
        serve(tmp_path) as real,
        fault_proxy(real.host, rule=rule) as proxy,
        plain(proxy.host) as client,
    ):
        error = fails(lambda: client.request("GET", "/v2/a/manifests/1", what="it"))
    assert error.exit_code == 5


def test_harbors_401_for_a_project_that_is_not_there_is_named_and_tried_once(
    tmp_path: Path,
) -> None:
    def harbor(method: str, path: str, _count: int) -> Fault | None:
        unknown = Refuse(401, code="UNAUTHORIZED", message="project team not found")
        return unknown if method == "HEAD" and "/v2/team/" in path else None

    builder = StorageBuilder(tmp_path / "source")
    for repository in ("team/a", "there/a"):
        builder.image(repository, "1", [b"layer"])
    out = tmp_path / "out"
    with (
        serve(tmp_path / "root") as real,
        fault_proxy(real.host, rule=harbor) as proxy,
        plain(real.host) as client,
    ):
        codes, errors = [], ""
        for arguments in (
            ["export", str(tmp_path / "source"), str(out)],
            ["push", str(out), proxy.host, "--dest-tls-verify=false", "--insecure-policy"],
        ):
            done = subprocess.run(
                [sys.executable, "-m", "exporter", *arguments],
                env=skopeo_environment(tmp_path / "data"), check=False, capture_output=True,
                text=True,
            )  # fmt: skip
            codes.append(done.returncode)
            errors += done.stderr
        assert codes == [0, 1]
        assert "push failed: team/a:1: cannot look up team/a 1: 401" in errors
        assert client.manifest_digest("there/a", "1") is not None


def test_a_connection_lost_while_idle_is_made_again_except_for_what_changes_something(
    tmp_path: Path,
) -> None:
    def rule(_method: str, path: str, count: int) -> Fault | None:
        return Reset() if path != "/v2/" and count == 1 else None

    StorageBuilder(tmp_path).image("a", "1", [b"layer"])
    with (
        serve(tmp_path) as real,
        fault_proxy(real.host, rule=rule) as proxy,
        plain(proxy.host) as client,
    ):
        assert look_up(client) is not None
        assert fails(lambda: mount(client)).exit_code == 5
        statuses = [request.status for request in proxy.requests if request.path != "/v2/"]
    assert statuses == [0, 200, 0]


def test_a_connection_that_is_always_lost_is_tried_twice_at_most(tmp_path: Path) -> None:
    def rule(method: str, _path: str, _count: int) -> Fault | None:
        return Reset() if method == "HEAD" else None

    with (
        serve(tmp_path) as real,
        fault_proxy(real.host, rule=rule) as proxy,
        plain(proxy.host) as client,
    ):
        assert fails(lambda: look_up(client)).exit_code == 5
        statuses = [request.status for request in proxy.requests if request.method == "HEAD"]
    assert statuses == [0, 0]


# Odd registries


def test_without_the_digest_header_the_manifest_is_hashed() -> None:
    say = registry(lambda _: Said(200, body=MANIFEST))
    with fake(say) as running, plain(running.host) as client:
        by_tag = look_up(client)
        sha512 = Digest.of(MANIFEST, algorithm="sha512")
        assert (by_tag, client.manifest_digest("a", sha512)) == (DIGEST, sha512)


@pytest.mark.parametrize("value", ["", "sha256:abc", "sha256:../../x", "md5:" + "0" * 32])
def test_a_digest_header_that_holds_none_is_refused(value: str) -> None:
    say = registry(lambda _: Said(200, [("Docker-Content-Digest", value)], MANIFEST))
    with fake(say) as running, plain(running.host) as client:
        assert fails(lambda: look_up(client)).exit_code == 4


def test_an_answer_without_end_is_read_up_to_a_limit_only() -> None:
    sent: list[int] = []

    def serve_one(listener: socket.socket) -> None:
        client, _ = listener.accept()
        with client:
            client.recv(1 << 16)
            client.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
            with suppress(OSError):
                while True:
                    sent.append(client.send(b"x" * (1 << 16)))

    context = ssl.create_default_context()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve_one, args=(listener,))
        thread.start()
        transport = Transport(context, timeout_seconds=20)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        answer = transport.send("GET", url, {}, what="it")
        thread.join()
        transport.close()
    assert (len(answer.body), answer.whole) == (4 << 20, False)
    assert sum(sent) < 64 << 20  # the kernel's buffers hold some more


def test_a_manifest_without_end_is_refused() -> None:
    say = registry(lambda _: Said(200, body=b"x" * ((4 << 20) + 1)))
    with fake(say) as running, plain(running.host) as client:
        assert "too long for a manifest" in fails(lambda: look_up(client)).message


def test_an_upload_that_was_opened_elsewhere_is_left_alone() -> None:
    with (
        fake(lambda _: Said(204)) as elsewhere,
        fake(
            registry(lambda _: Said(202, [("Location", f"http://{elsewhere.host}/v2/b/x?y=z")]))
        ) as running,
        plain(running.host, ANN) as client,
    ):
        assert mount(client) is False
        assert [asked for asked in running.seen() if asked.startswith("DELETE")] == []
    assert elsewhere.asked == []


@pytest.mark.parametrize("location", ["/v2/b/up?_state=1", "http://{host}/v2/b/up?_state=1"])
def test_an_upload_that_was_opened_is_cancelled_where_it_is(location: str) -> None:
    def say(asked: Asked) -> Said:
        location_ = location.format(host=asked.headers["Host"])
        return Said(202, [("Location", location_)]) if asked.method == "POST" else Said(204)

    with fake(registry(say)) as running, plain(running.host) as client:
        assert mount(client) is False
        assert running.seen()[-1] == "DELETE /v2/b/up?_state=1"


@pytest.mark.parametrize("location", ["", "http://[", "//", "\x00", "http://h:99999999/"])
def test_a_location_that_is_none_harms_nobody(location: str) -> None:
    say = registry(lambda _: Said(202, [("Location", location)]))
    with fake(say) as running, plain(running.host) as client:
        assert mount(client) is False


def test_credentials_never_follow_a_redirect_to_another_host() -> None:
    basic = [("WWW-Authenticate", 'Basic realm="x"')]

    def say(asked: Asked) -> Said:
        if "Authorization" not in asked.headers:
            return Said(401, basic)
        if asked.path == "/v2/":
            return Said(200)
        if asked.path.endswith("/1"):
            return Said(307, [("Location", "/v2/moved")])
        return Said(307, [("Location", f"http://{elsewhere.host}/there")])

    with (
        fake(lambda _: Said(200, [FOUND])) as elsewhere,
        fake(say) as running,
        plain(running.host, ANN) as client,
    ):
        assert look_up(client) == DIGEST
    shown = [asked.headers["Authorization"] for asked in running.asked[-2:]]
    assert shown == [ANN.basic()] * 2, "on its own host it goes along"
    assert [asked.headers["Authorization"] for asked in elsewhere.asked] == [None]


def test_only_the_registry_says_who_is_to_see_the_credentials() -> None:
    """A blob store that it redirects to could otherwise name a token realm of its own."""

    def lure(asked: Asked) -> Said:
        realm = f'Bearer realm="http://{asked.headers["Host"]}/token"'
        return Said(401, [("WWW-Authenticate", realm)])

    with fake(lure) as elsewhere:
        say = registry(lambda _: Said(307, [("Location", f"http://{elsewhere.host}/there")]))
        with fake(say) as running, plain(running.host, ANN) as client:
            assert fails(lambda: look_up(client)).exit_code == 4
    assert [(asked.path, asked.headers["Authorization"]) for asked in elsewhere.asked] == [
        ("/there", None)
    ]


def test_a_redirect_of_what_is_sent_with_a_secret_in_its_body_is_not_followed() -> None:
    credentials = Credentials("<token>", "", "refresh me")
    with fake(lambda _: Said(200)) as elsewhere:
        given = iter([Said(307, [("Location", f"http://{elsewhere.host}/")])])
        with (
            fake(guarded(given)) as running,
            Client(running.host, credentials=credentials, tls_verify=False) as client,
        ):
            error = fails(client.ping)
    assert (elsewhere.asked, error.exit_code) == ([], 4)
    assert "refresh me" not in f"{error!r}{error.message}"


@pytest.mark.parametrize(
    "location", ["/v2/a/manifests/1", "ftp://x/", "http://[", "http://h:99999999/", "http://"]
)
def test_a_redirect_to_nowhere_is_refused(location: str) -> None:
    say = registry(lambda _: Said(302, [("Location", location)]))
    with fake(say) as running, plain(running.host) as client:
        assert fails(lambda: look_up(client)).exit_code == 4
        assert len(running.asked) <= 2 + 6


def test_cookies_are_never_kept() -> None:
    say = registry(lambda _: Said(200, [FOUND, ("Set-Cookie", "sid=1; Path=/")]))
    with fake(say) as running, plain(running.host) as client:
        assert [look_up(client), look_up(client)] == [DIGEST, DIGEST]
    assert [asked.headers["Cookie"] for asked in running.asked] == [None] * len(running.asked)


def test_the_client_says_who_it_is_and_takes_every_kind_of_manifest() -> None:
    say = registry(lambda _: Said(200, [FOUND]))
    with fake(say) as running, plain(running.host) as client:
        look_up(client)
    headers = running.asked[-1].headers
    assert headers["User-Agent"].startswith("skopeo-dir/")
    assert len(headers["Accept"].split(",")) == 6


# Tokens


def guarded(
    tokens: Iterator[Said], *, refused: frozenset[str] = frozenset()
) -> Callable[..., Said]:
    """Behave as a registry with a token realm; a token may be refused, and is spent then."""

    def say(asked: Asked) -> Said:
        if asked.path.startswith("/token"):
            return next(tokens)
        shown = asked.headers["Authorization"]
        if shown is None or shown in refused:
            realm = f'Bearer realm="http://{asked.headers["Host"]}/token",service="s"'
            return Said(401, [("WWW-Authenticate", realm)])
        return Said(200, [FOUND])

    return say


def token(**fields: object) -> Said:
    return Said(200, body=orjson.dumps(fields))


def test_a_token_that_is_refused_is_asked_for_again_once() -> None:
    refused = {"Bearer 1"}
    given = iter([token(token="0"), token(token="1"), token(token="2"), token(token="3")])

    def say(asked: Asked) -> Said:
        return guarded(given, refused=frozenset(refused))(asked)

    with fake(say) as running, plain(running.host) as client:
        first = fails(lambda: look_up(client))
        assert (first.exit_code, look_up(client)) == (4, DIGEST)
        refused.add("Bearer 2")
        assert look_up(client) == DIGEST
    shown = [asked.headers["Authorization"] for asked in running.asked[-3:]]
    assert shown == ["Bearer 2", None, "Bearer 3"]


def test_a_token_is_asked_for_again_shortly_before_it_expires() -> None:
    times = [0.0]
    given = iter([token(token="1", expires_in=300), token(token="2", expires_in=300)])
    with fake(guarded(given)) as running:
        transport = Transport(ssl.create_default_context(), timeout_seconds=20)
        authenticator = Authenticator(None, transport, clock=lambda: times[-1])
        url = f"http://{running.host}/v2/a"
        for seconds in (0.0, 294.0, 296.0):
            times.append(seconds)
            answer = authenticator.send("GET", url, {}, scopes=("a",), what="it")
            assert answer.status == 200
        transport.close()
    shown = [asked.headers["Authorization"] for asked in running.asked]
    assert [one for one in shown if one] == ["Bearer 1", "Bearer 1", "Bearer 2"]
    assert running.seen().count("GET /v2/a") == 4, "the first, anonymous one was challenged"


def test_a_registry_that_lets_anyone_ping_is_believed_when_it_asks_later() -> None:
    given = iter([token(token="t")])

    def say(asked: Asked) -> Said:
        if asked.method == "POST" or asked.path.startswith("/token"):
            answer = guarded(given)(asked)
            return Said(201) if answer.status == 200 and asked.method == "POST" else answer
        return Said(200, [FOUND])

    with fake(say) as running, plain(running.host, ANN) as client:
        assert (look_up(client), mount(client)) == (DIGEST, True)
    scopes = "scope=repository%3Ab%3Apull%2Cpush&scope=repository%3Aa%3Apull"
    assert running.seen()[-3:] == [
        f"POST {UPLOADS}", f"GET /token?service=s&{scopes}", f"POST {UPLOADS}",
    ]  # fmt: skip
    shown = [asked.headers["Authorization"] for asked in running.asked[-3:]]
    assert shown == [None, ANN.basic(), "Bearer t"]


def test_an_upload_is_cancelled_with_a_token_that_allows_it(tmp_path: Path) -> None:
    with (
        serve(tmp_path) as real,
        token_realm(real.host, username=ANN.username, password=ANN.password) as realm,
        plain(realm.host, ANN) as client,
    ):
        assert mount(client) is False
        last = realm.requests[-1]
    assert (last.method, last.status) == ("DELETE", 204)


@pytest.mark.parametrize("fault", [Refuse(401), Refuse(503), Reset()])
def test_an_upload_that_cannot_be_cancelled_is_no_error(tmp_path: Path, fault: Fault) -> None:
    def rule(method: str, _path: str, _count: int) -> Fault | None:
        return fault if method == "DELETE" else None

    with (
        serve(tmp_path) as real,
        fault_proxy(real.host, rule=rule) as proxy,
        plain(proxy.host) as client,
    ):
        assert mount(client) is False
        assert proxy.requests[-1].method == "DELETE"


@pytest.mark.parametrize("name", ["token", "access_token"])
@pytest.mark.parametrize("seconds", [None, 0, 60, 1e9, "x", -5])
def test_a_token_is_kept_at_least_a_minute(name: str, seconds: object) -> None:
    given = iter([token(**{name: "t", "expires_in": seconds})] * 2)
    with fake(guarded(given)) as running, plain(running.host) as client:
        assert [look_up(client) for _ in range(3)] == [DIGEST] * 3
    assert len([asked for asked in running.seen() if "/token" in asked]) == 2


@pytest.mark.parametrize(
    "body",
    [
        b"", b"[]", b"1", b'"t"', b"{}", b'{"token": 1}', b'{"token": ""}', b'{"token": "a b"}',
        b'{"token": "a\\r\\nX: y"}', b'{"token": "\\u00fc"}', b"<html>",
    ],
)  # fmt: skip
def test_a_realm_that_gives_no_token_is_refused(body: bytes) -> None:
    with (
        fake(guarded(iter([Said(200, body=body)]))) as running,
        Client(running.host, tls_verify=False) as client,
    ):
        error = fails(client.ping)
    assert error.exit_code == 4
    assert error.message == f"cannot get a token from {running.host}: it answers with none"


@pytest.mark.parametrize(("status", "exit_code"), [(401, 4), (403, 4), (429, 5), (503, 5)])
def test_a_realm_that_fails_gives_its_own_exit_code(status: int, exit_code: int) -> None:
    with (
        fake(guarded(iter([Said(status)]))) as running,
        Client(running.host, tls_verify=False) as client,
    ):
        assert fails(client.ping).exit_code == exit_code


def test_an_identity_token_is_sent_as_a_form_and_nothing_else_is() -> None:
    given = iter([token(access_token="t"), token(access_token="t")])
    credentials = Credentials("<token>", "", "refresh me")
    with fake(guarded(given)) as running, plain(running.host, credentials) as client:
        assert look_up(client) == DIGEST
    asked = next(asked for asked in reversed(running.asked) if asked.path == "/token")
    assert (asked.method, asked.headers["Authorization"]) == ("POST", None)
    assert parse_qs(asked.body.decode()) == {
        "grant_type": ["refresh_token"],
        "client_id": ["skopeo-dir"],
        "refresh_token": ["refresh me"],
        "scope": ["repository:a:pull"],
        "service": ["s"],
    }


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ('Bearer realm="https://h/t",service="s"', Challenge("bearer", "https://h/t", "s")),
        ('bearer Service="s" , REALM="https://h/t"', Challenge("bearer", "https://h/t", "s")),
        ("Bearer realm=https://h/t", Challenge("bearer", "https://h/t", "")),
        (r'Bearer realm="https://h/\"t"', Challenge("bearer", 'https://h/"t', "")),
        ('Negotiate, Basic realm="x, y"', Challenge("basic", "x, y", "")),
        ('Digest realm="a", nonce="Bearer b", Basic', Challenge("basic", "", "")),
        ('Bearer realm="x", Basic realm="y"', Challenge("basic", "y", "")),
        ('Bearer realm="ftp://h/"', None),
        ('Bearer realm="http://["', None),
        ("Negotiate", None),
        ("", None),
        ('"', None),
        (",,=,", None),
    ],
)
def test_the_first_challenge_that_can_be_met_is(header: str, expected: Challenge | None) -> None:
    assert Challenge.parse(header) == expected


# Proxies


@pytest.mark.parametrize(
    ("exempt", "host", "direct"),
    [
        ("", "registry.example", False),
        ("", "localhost:5000", True),
        ("", "127.0.0.9:5000", True),
        ("", "[::1]:5000", True),
        ("*", "registry.example", True),
        ("registry.example", "registry.example:5000", True),
        ("example", "registry.example", True),
        (".example", "registry.example", True),
        ("*.example", "registry.example", True),
        (".registry.example", "registry.example", False),
        ("gistry.example", "registry.example", False),
        ("a, Registry.Example ,b", "registry.example", True),
        ("registry.example:5000", "registry.example:5000", True),
        ("registry.example:443", "registry.example", True),
        ("registry.example:5001", "registry.example:5000", False),
        ("10.0.0.0/8", "10.1.2.3:5000", True),
        ("10.0.0.0/8", "11.1.2.3:5000", False),
        ("10.1.2.3", "10.1.2.3:5000", True),
        ("fd00::/8", "[fd00::1]:5000", True),
        (",,", "registry.example", False),
    ],
)
def test_no_proxy_says_who_is_asked_directly(exempt: str, host: str, *, direct: bool) -> None:
    proxies = Proxies(by_scheme={"http": "", "https": "http://proxy:1"}, exempt=exempt)
    assert proxies.url("https", host) == ("" if direct else "http://proxy:1")


def test_a_proxy_of_the_environment_is_used_but_never_for_loopback(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    say = registry(lambda _: Said(200, [FOUND]))
    with fake(lambda asked: Said(200, [FOUND])) as proxy, fake(say) as running:
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.setenv("HTTPS_PROXY", f"http://u:p@{proxy.host}")
        monkeypatch.setenv("HTTP_PROXY", f"u:p@{proxy.host}")
        with plain(running.host) as client:
            assert look_up(client) == DIGEST
        assert proxy.asked == []
        with plain("registry.invalid:5000") as client:
            assert look_up(client) == DIGEST
    asked = proxy.asked[-1]
    assert asked.path == "http://registry.invalid:5000/v2/a/manifests/1"
    assert asked.headers["Proxy-Authorization"] == Credentials("u", "p").basic()


@pytest.mark.parametrize("proxy", ["socks5://u:hush@h:1", "http://u:hush@h:x", "http://["])
def test_a_proxy_that_cannot_be_used_is_a_usage_error_without_its_password(
    monkeypatch: pytest.MonkeyPatch, proxy: str
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", proxy)
    with (
        Client("registry.invalid") as client,
        pytest.raises(UsageError, match="the proxy") as caught,
    ):
        client.ping()
    assert "hush" not in f"{caught.value.message}{caught.value.hint}"


def test_a_proxy_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    monkeypatch.setenv("HTTPS_PROXY", f"http://u:hush@127.0.0.1:{port}")
    with Client("registry.invalid") as client:
        error = fails(client.ping)
    assert (error.exit_code, "proxy" in error.message, "hush" in str(error)) == (5, True, False)


@pytest.mark.parametrize("text", ["", "a\x00b", "\x1b[2J", "\u202e", "\r\n" * 9, "é" * 9999])
def test_clean_text_is_one_short_printable_line(text: str) -> None:
    cleaned = clean(text)
    assert (cleaned.isprintable(), len(cleaned) <= 300) == (True, True)
