"""The proxy's laws: it changes nothing but what it was told to, and says what it saw."""

import http.client
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import orjson
import pytest

from exporter.digest import Digest
from tests.builders import StorageBuilder
from tests.fault_proxy import Cut, Fault, Hang, Refuse, Reset, fault_proxy
from tests.registry import Request, serve, skopeo
from tests.test_rig import dir_image

MANIFEST = "/v2/a/manifests/1"
ACCEPT = "application/vnd.docker.distribution.manifest.v2+json"


@contextmanager
def connection(host: str) -> Iterator[http.client.HTTPConnection]:
    made = http.client.HTTPConnection(host, timeout=20)
    try:
        yield made
    finally:
        made.close()


def ask(made: http.client.HTTPConnection, method: str = "GET", path: str = MANIFEST) -> bytes:
    made.request(method, path, headers={"Accept": ACCEPT})
    with made.getresponse() as response:
        return response.read()


def test_a_push_through_it_arrives_as_without_it(tmp_path: Path) -> None:
    image = dir_image(tmp_path / "image", layer=bytes(range(256)) * 20_000)
    flags = ("copy", "--preserve-digests", "--dest-tls-verify=false", f"dir:{image}")
    with serve(tmp_path / "root") as registry, fault_proxy(registry.host) as proxy:
        skopeo(*flags, f"docker://{proxy.host}/a:1")
        assert [*proxy.requests] == registry.requests()[1:]
        with connection(registry.host) as made:
            assert ask(made) == (image / "manifest.json").read_bytes()
    for blob in (tmp_path / "root").glob("docker/registry/v2/blobs/sha256/*/*/data"):
        assert Digest.of(blob.read_bytes()).hex == blob.parent.name


def test_a_chunked_body_passes_whole(tmp_path: Path) -> None:
    chunks = [b"a" * 99_999, b"b", bytes(1 << 16)]
    with (
        serve(tmp_path) as registry,
        fault_proxy(registry.host) as proxy,
        connection(proxy.host) as made,
    ):
        made.request("POST", "/v2/a/blobs/uploads/")
        with made.getresponse() as response:
            location = urlsplit(response.headers["Location"])
        assert location.netloc == proxy.host, "what the registry makes of the Host line"
        made.request("PATCH", f"{location.path}?{location.query}", iter(chunks))
        with made.getresponse() as response:
            assert (response.status, response.headers["Range"]) == (202, "0-165535")
    (upload,) = tmp_path.glob("docker/registry/v2/repositories/a/_uploads/*/data")
    assert upload.read_bytes() == b"".join(chunks)


def test_every_accept_line_reaches_the_registry(tmp_path: Path) -> None:
    """Joined into one or reduced to the last, the registry would convert or refuse."""
    StorageBuilder(tmp_path).image("a", "1", [b"layer"])
    with (
        serve(tmp_path) as registry,
        fault_proxy(registry.host) as proxy,
        connection(proxy.host) as made,
    ):
        made.putrequest("GET", MANIFEST)
        for value in (ACCEPT, "application/vnd.oci.image.manifest.v1+json", "text/plain"):
            made.putheader("Accept", value)
        made.endheaders()
        with made.getresponse() as response:
            assert response.status == 200


def test_a_connection_is_kept_for_many_requests(tmp_path: Path) -> None:
    StorageBuilder(tmp_path).image("a", "1", [b"layer"])

    def rule(method: str, path: str, count: int) -> Fault | None:
        return Refuse(503) if count == 2 else None

    with (
        serve(tmp_path) as registry,
        fault_proxy(registry.host, rule=rule) as proxy,
        connection(proxy.host) as made,
    ):
        ask(made)
        kept = made.sock
        for method in ("GET", "HEAD", "HEAD", "GET"):
            ask(made, method)
        assert made.sock is kept
        statuses = [status for _, _, status in proxy.requests]
    assert statuses == [200, 503, 200, 503, 200]


def test_a_rule_is_told_method_path_and_how_often_that_was_asked(tmp_path: Path) -> None:
    told: list[tuple[str, str, int]] = []
    with (
        serve(tmp_path) as registry,
        fault_proxy(registry.host, rule=lambda *what: told.append(what)) as proxy,
        connection(proxy.host) as made,
    ):
        for method, path in (("GET", "/v2/"), ("GET", "/v2/?x"), ("GET", "/v2/"), ("HEAD", "/v2/")):
            ask(made, method, path)
    assert told == [
        ("GET", "/v2/", 1),
        ("GET", "/v2/?x", 1),
        ("GET", "/v2/", 2),
        ("HEAD", "/v2/", 1),
    ]


def test_a_refusal_is_a_registrys_and_the_registry_is_not_asked(tmp_path: Path) -> None:
    refusal = Refuse(429, retry_after="7", code="TOOMANYREQUESTS", message="slow down")
    with (
        serve(tmp_path) as registry,
        fault_proxy(registry.host, rule=lambda *_: refusal) as proxy,
        connection(proxy.host) as made,
    ):
        before = len(registry.requests())
        made.request("PATCH", "/v2/a/blobs/uploads/x", iter([b"a" * 99_999, b"b"]))
        with made.getresponse() as response:
            shown = response.status, response.headers["Retry-After"], orjson.loads(response.read())
        assert len(registry.requests()) == before
    errors = [{"code": "TOOMANYREQUESTS", "message": "slow down"}]
    assert shown == (429, "7", {"errors": errors})


@pytest.mark.parametrize(("forward", "asked"), [(False, 0), (True, 1)])
def test_a_reset_comes_before_or_after_the_registry_did_it(
    tmp_path: Path, *, forward: bool, asked: int
) -> None:
    with (
        serve(tmp_path) as registry,
        fault_proxy(registry.host, rule=lambda *_: Reset(forward=forward)) as proxy,
        connection(proxy.host) as made,
    ):
        before = len(registry.requests())
        with pytest.raises(ConnectionResetError) as caught:
            ask(made, "POST", "/v2/a/blobs/uploads/")
        assert caught.type is ConnectionResetError, "not the farewell that is a subclass of it"
        assert len(registry.requests()) - before == asked
        assert proxy.requests == [Request("POST", "/v2/a/blobs/uploads/", 0)]


def test_a_cut_answer_ends_early(tmp_path: Path) -> None:
    StorageBuilder(tmp_path).image("a", "1", [b"layer"])
    with (
        serve(tmp_path) as registry,
        fault_proxy(registry.host, rule=lambda *_: Cut(after=5)) as proxy,
        connection(proxy.host) as made,
        pytest.raises(http.client.IncompleteRead) as caught,
    ):
        ask(made)
    assert len(caught.value.partial) == 5


def test_a_hanging_request_ends_with_its_client_or_the_proxy(tmp_path: Path) -> None:
    with serve(tmp_path) as registry:
        with fault_proxy(registry.host, rule=lambda *_: Hang()) as proxy:
            made = http.client.HTTPConnection(proxy.host, timeout=0.1)
            made.request("GET", "/v2/")
            with pytest.raises(TimeoutError):
                made.getresponse()
            waiting = http.client.HTTPConnection(proxy.host, timeout=20)
            waiting.request("GET", "/v2/")
            made.close()
        with pytest.raises(ConnectionResetError):
            waiting.getresponse()
        waiting.close()


def test_a_delay_is_waited_for_by_each_request(tmp_path: Path) -> None:
    with (
        serve(tmp_path) as registry,
        fault_proxy(registry.host, delay_seconds=0.05) as proxy,
        connection(proxy.host) as made,
    ):
        began = time.monotonic()
        for _ in range(4):
            ask(made, "GET", "/v2/")
        assert time.monotonic() - began >= 0.2
