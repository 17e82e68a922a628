"""The rig's own laws: what the other tests take for granted."""

import os
import socket
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Callable, Mapping
from pathlib import Path

import orjson
import pytest

from exporter.digest import Digest
from tests.builders import (
    FIXTURES,
    INDEX_TYPES,
    MANIFEST_TYPES,
    StorageBuilder,
    image_config,
    image_manifest,
    unpack_fixture,
)
from tests.registry import Registry, serve, skopeo
from tests.snapshot import snapshot
from tests.token_server import token_realm

ACCEPT = {"Accept": ", ".join((*MANIFEST_TYPES.values(), *INDEX_TYPES.values()))}
Row = tuple[str, str, str, str]


def get(url: str, headers: Mapping[str, str] = ACCEPT) -> bytes:
    with urllib.request.urlopen(urllib.request.Request(url, headers=dict(headers))) as response:
        return bytes(response.read())


def refusal(url: str, headers: Mapping[str, str] = ACCEPT) -> tuple[int, str]:
    """Return the status and challenge of a request that must fail."""
    with pytest.raises(urllib.error.HTTPError) as caught:
        get(url, headers)
    with caught.value as error:
        return error.code, error.headers.get("WWW-Authenticate", "")


def tags_served(registry: Registry) -> set[Row]:
    """Return repository, tag, digest and media type of every tag, by the registry's own word."""
    base, rows = f"http://{registry.host}/v2", set()
    for repository in orjson.loads(get(f"{base}/_catalog?n=1000"))["repositories"]:
        for tag in orjson.loads(get(f"{base}/{repository}/tags/list"))["tags"] or ():
            url = f"{base}/{repository}/manifests/{tag}"
            with urllib.request.urlopen(urllib.request.Request(url, headers=ACCEPT)) as response:
                headers = response.headers
                assert headers["Docker-Content-Digest"] == Digest.of(response.read())
            media_type = headers["Content-Type"]
            rows.add((repository, tag, headers["Docker-Content-Digest"], media_type))
    return rows


def dir_image(directory: Path, *, layer: bytes = b"a layer") -> Path:
    """Write a `dir:` image of one layer."""
    config = image_config([layer])
    directory.mkdir()
    (directory / "manifest.json").write_bytes(image_manifest(config, [layer]))
    for blob in (config, layer):
        (directory / Digest.of(blob).hex).write_bytes(blob)
    return directory


def test_a_registry_serves_while_its_context_lasts_and_not_after(tmp_path: Path) -> None:
    with serve(tmp_path / "root") as registry:
        assert get(f"http://{registry.host}/v2/") == b"{}"
    host, port = registry.host.split(":")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, int(port))).close()


def test_a_registry_that_cannot_start_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "docker-registry"
    broken.write_text("#!/bin/sh\necho out of order; exit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(RuntimeError, match=r"did not start:\nout of order"), serve(tmp_path):
        pass


def test_without_the_binaries_tests_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="docker-registry"), serve(tmp_path / "root"):
        pass
    with pytest.raises(FileNotFoundError, match="skopeo"):
        skopeo("--version")


def test_the_access_log_counts_uploads(tmp_path: Path) -> None:
    image = dir_image(tmp_path / "image")
    with serve(tmp_path / "root") as registry:
        flags = ("--preserve-digests", "--dest-tls-verify=false")
        for _ in range(2):
            skopeo("copy", *flags, f"dir:{image}", f"docker://{registry.host}/a:1")
        asked = [(request.method, request.status) for request in registry.requests()]
    assert asked.count(("PATCH", 202)) == 2, "config and layer, once each"
    assert asked.count(("PUT", 201)) == 4, "both blobs once, the manifest twice"


def test_skopeo_raises_with_its_own_words(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"skopeo inspect dir:.*\n.*no such file or directory"):
        skopeo("inspect", f"dir:{tmp_path}/absent")


def test_skopeos_cache_is_where_it_is_told_to_be(tmp_path: Path) -> None:
    image = dir_image(tmp_path / "image")
    with serve(tmp_path / "root") as registry:
        target = f"docker://{registry.host}/a:1"
        skopeo("copy", "--dest-tls-verify=false", f"dir:{image}", target, data_home=tmp_path)
    assert list(tmp_path.glob("containers/cache/blob-info-cache-*")) != []


def test_htpasswd_lets_in_its_one_account(tmp_path: Path) -> None:
    with serve(tmp_path / "root", htpasswd=("user", "pass word")) as registry:
        url = f"http://{registry.host}/v2/"
        good, bad = (
            {"Authorization": "Basic " + b64encode(f"user:{password}".encode()).decode()}
            for password in ("pass word", "other")
        )
        assert get(url, good) == b"{}"
        assert refusal(url, bad) == (401, 'Basic realm="rig"')
        assert refusal(url, {}) == (401, 'Basic realm="rig"')


def test_tls_is_trusted_by_its_own_authority_alone(tmp_path: Path) -> None:
    image = dir_image(tmp_path / "image")
    with serve(tmp_path / "root", tls=True) as registry:
        operands = (f"dir:{image}", f"docker://{registry.host}/a:1")
        with pytest.raises(RuntimeError, match="x509"):
            skopeo("copy", *operands)
        skopeo("copy", "--dest-cert-dir", registry.ca_dir, *operands)


def test_skopeo_pushes_through_the_token_realm(tmp_path: Path) -> None:
    image = dir_image(tmp_path / "image", layer=os.urandom(3_000_000))
    with (
        serve(tmp_path / "root") as registry,
        token_realm(registry.host, username="user", password="secret") as realm,
    ):
        digests = tmp_path / "digest"
        flags = ("--preserve-digests", "--dest-tls-verify=false", "--digestfile", digests)
        target = f"docker://{realm.host}/team/app:1"
        with pytest.raises(RuntimeError, match=r"unauthorized|authentication"):
            skopeo("copy", *flags, "--dest-creds=user:wrong", f"dir:{image}", target)
        skopeo("copy", *flags, "--dest-creds=user:secret", f"dir:{image}", target)
        back = tmp_path / "back"
        source = ("--src-tls-verify=false", "--src-creds=user:secret", target, f"dir:{back}")
        skopeo("copy", "--preserve-digests", *source)
    (back / "version").unlink()
    assert {p.name: p.read_bytes() for p in image.iterdir()} == {
        p.name: p.read_bytes() for p in back.iterdir()
    }
    assert digests.read_text().strip() == Digest.of((image / "manifest.json").read_bytes())


def test_skopeo_mounts_through_the_token_realm(tmp_path: Path) -> None:
    image = dir_image(tmp_path / "image")
    with (
        serve(tmp_path / "root") as registry,
        token_realm(registry.host, username="user", password="secret") as realm,
    ):
        for name in ("a", "b"):
            skopeo(
                "copy",
                "--dest-tls-verify=false",
                "--dest-creds=user:secret",
                f"dir:{image}",
                f"docker://{realm.host}/{name}:1",
                data_home=tmp_path,
            )
        mounts = [request.status for request in realm.requests if "mount=" in request.path]
    assert 201 in mounts


def test_a_token_is_good_for_its_scopes_and_nothing_else(tmp_path: Path) -> None:
    builder = StorageBuilder(tmp_path / "root")
    for repository in ("a", "b"):
        builder.image(repository, "1", [b"layer"])
    with (
        serve(builder.root) as registry,
        token_realm(registry.host, username="user", password="secret") as realm,
    ):
        base = f"http://{realm.host}"
        challenge = f'Bearer realm="{base}/token",service="rig",scope="repository:a:pull"'
        assert refusal(f"{base}/v2/a/manifests/1") == (401, challenge)

        account = {"Authorization": "Basic " + b64encode(b"user:secret").decode()}
        assert refusal(f"{base}/token?scope=repository:a:pull", {})[0] == 401
        answer = orjson.loads(get(f"{base}/token?scope=repository:a:pull", account))
        bearer = {**ACCEPT, "Authorization": f"Bearer {answer['token']}"}
        assert orjson.loads(get(f"{base}/v2/a/manifests/1", bearer))["schemaVersion"] == 2
        assert refusal(f"{base}/v2/b/manifests/1", bearer)[0] == 401
        assert refusal(f"{base}/v2/_catalog", bearer)[0] == 401

        mount = f"{base}/v2/a/blobs/uploads/?mount={Digest.of(b'layer')}&from=b"
        request = urllib.request.Request(mount, method="POST", headers=bearer)
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(request)
        with caught.value as error:
            wanted = 'scope="repository:a:pull,push repository:b:pull"'
            assert error.headers["WWW-Authenticate"].endswith(wanted)


def test_a_built_tree_is_served_with_the_builders_digests(tmp_path: Path) -> None:
    builder = StorageBuilder(tmp_path / "root")
    layers = [b"one", b"two"]
    docker = builder.image("one", "docker", layers)
    oci = builder.image("team/two", "oci", layers, kind="oci")
    undeclared = builder.image("team/two", "none", layers, kind="oci", extra={"mediaType": None})
    child = builder.image("one", None, layers, config=b"{}")
    listed = builder.index("one", "list", [docker, child])
    index = builder.index("team/two", "index", [oci, undeclared], kind="oci")
    expected = {
        ("one", "docker", docker, MANIFEST_TYPES["docker"]),
        ("one", "list", listed, INDEX_TYPES["docker"]),
        ("team/two", "oci", oci, MANIFEST_TYPES["oci"]),
        ("team/two", "none", undeclared, MANIFEST_TYPES["oci"]),
        ("team/two", "index", index, INDEX_TYPES["oci"]),
    }
    with serve(builder.root) as registry:
        assert expected == tags_served(registry)
        for name in ("one:list", "team/two:index"):
            source = f"docker://{registry.host}/{name}"
            copy = tmp_path / name.replace("/", "-")
            flags = ("--all", "--preserve-digests", "--src-tls-verify=false")
            skopeo("copy", *flags, source, f"dir:{copy}")


def test_a_built_tree_has_the_files_that_a_registry_writes(tmp_path: Path) -> None:
    image = dir_image(tmp_path / "image")
    with serve(tmp_path / "real") as registry:
        target = f"docker://{registry.host}/team/app:1"
        skopeo("copy", "--preserve-digests", "--dest-tls-verify=false", f"dir:{image}", target)
    builder = StorageBuilder(tmp_path / "built")
    builder.image("team/app", "1", [b"a layer"])
    real, built = (
        {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}
        for root in (tmp_path / "real", tmp_path / "built")
    )
    assert real == built


def test_many_makes_what_it_says(tmp_path: Path) -> None:
    builder = StorageBuilder(tmp_path / "root")
    builder.many(60, 50)
    with serve(builder.root) as registry:
        served = tags_served(registry)
    assert (len(served), len({repository for repository, *_ in served})) == (60, 50)
    assert {1, 2, 3} == {repository.count("/") + 1 for repository, *_ in served}
    blobs = list((builder.v2 / "blobs").glob("sha256/*/*/data"))
    assert len(blobs) == 60 * (1 + 1 + 4) + 40 * 6


def test_the_fixture_is_what_the_registry_said_of_it(tmp_path: Path) -> None:
    lines = (FIXTURES / "registry.jsonl").read_bytes().splitlines()
    expected = {tuple(orjson.loads(line).values()) for line in lines}
    root = unpack_fixture(tmp_path)
    before = snapshot(root)
    with serve(root) as registry:
        assert expected == tags_served(registry)
    assert before == snapshot(root), "serving writes nothing"


def test_the_fixture_is_small_and_its_readme_names_every_tag() -> None:
    assert (FIXTURES / "registry.tar.xz").stat().st_size <= 3 * 1024 * 1024
    readme = (FIXTURES / "README.md").read_text()
    rows = map(orjson.loads, (FIXTURES / "registry.jsonl").read_bytes().splitlines())
    names = [f"`{row['repository']}:{row['tag']}`" for row in rows]
    assert [name for name in names if name not in readme] == []


def rewrite_in_secret(path: Path) -> None:
    """Change the content of a file, but not its modification time."""
    times = path.stat()
    path.write_bytes(b"changed")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.mark.parametrize(
    "touch",
    [
        rewrite_in_secret,
        lambda path: path.chmod(0o600),
        lambda path: os.utime(path, ns=(0, 0)),
        lambda path: os.chown(path, 1, 1),
        lambda path: path.rename(path.with_name("renamed")),
        lambda path: path.with_name("new").touch(),
        lambda path: path.unlink(),
    ],
    ids=["content", "mode", "mtime", "owner", "rename", "new", "unlink"],
)
def test_a_snapshot_sees_every_kind_of_touch(tmp_path: Path, touch: Callable[[Path], None]) -> None:
    path = tmp_path / "tree" / "file"
    path.parent.mkdir()
    path.write_bytes(b"content")
    before = snapshot(path.parent)
    touch(path)
    assert before != snapshot(path.parent)


def test_a_snapshot_does_not_see_hard_links_and_reads(tmp_path: Path) -> None:
    path = tmp_path / "tree" / "file"
    path.parent.mkdir()
    path.write_bytes(b"content")
    before = snapshot(path.parent)
    (tmp_path / "link").hardlink_to(path)
    path.read_bytes()
    assert before == snapshot(path.parent)
