"""Every kind of content that a registry can hold: what we export, and how it arrives.

What skopeo can copy must be, by `diff -r`, what skopeo itself writes from the same storage. Where
it cannot, the test pins down what we do instead. Spec: docs/FORMATS.md.
"""

import gzip
import hashlib
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import orjson
import pytest

from exporter.digest import Digest
from tests.builders import (
    CONFIG_TYPES,
    LAYER_TYPES,
    Kind,
    StorageBuilder,
    descriptor,
    image_config,
    image_manifest,
)
from tests.registry import Registry, collect_garbage, serve, skopeo, skopeo_environment

PLAIN = "--dest-tls-verify=false"
EMPTY = b"{}"
FOREIGN: Mapping[Kind, str] = {
    "docker": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
    "oci": "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
}
UNCOMPRESSED: Mapping[Kind, str] = {
    "docker": "application/vnd.docker.image.rootfs.diff.tar",
    "oci": "application/vnd.oci.image.layer.v1.tar",
}


def layer(text: str) -> bytes:
    return gzip.compress(text.encode(), mtime=0)


def run(*arguments: str | Path, home: Path) -> tuple[int, list[dict[str, object]], str]:
    done = subprocess.run(
        [sys.executable, "-m", "exporter", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=skopeo_environment(home),
        check=False,
    )
    assert "Traceback" not in done.stderr
    lines = done.stdout.splitlines() if "--json" in arguments else []
    return done.returncode, [orjson.loads(line) for line in lines], done.stderr


def artifact(builder: StorageBuilder, name: str, tag: str, **fields: object) -> None:
    """An OCI manifest with an empty config and a layer of a type of its own."""
    config = descriptor(EMPTY, "application/vnd.oci.empty.v1+json")
    content = descriptor(b"policy", "application/vnd.cncf.openpolicyagent.policy.layer.v1+rego")
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config,
        "layers": [content],
        **fields,
    }
    builder.layer(name, EMPTY)
    builder.layer(name, b"policy")
    builder.manifest(name, tag, orjson.dumps(manifest))


def everything(root: Path) -> None:
    """One tag of each kind that skopeo can copy as it is."""
    builder = StorageBuilder(root)
    builder.image("kinds/docker", "v1", [layer("a"), layer("b")], kind="docker")
    builder.image("kinds/oci", "typed", [layer("a")], kind="oci")
    builder.image("kinds/oci", "untyped", [layer("a")], kind="oci", extra={"mediaType": None})
    builder.image("kinds/oci", "no-layers", [], kind="oci")
    builder.image("kinds/oci", "twice", [layer("a"), layer("a")], kind="oci")
    children = [
        builder.image("kinds/list", None, [layer(arch)], kind="docker") for arch in ("x", "y")
    ]
    builder.index("kinds/list", "v1", children, kind="docker")
    children = [
        builder.image("kinds/index", None, [layer(arch)], kind="oci") for arch in ("x", "y")
    ]
    builder.index("kinds/index", "typed", children, kind="oci")
    builder.index("kinds/index", "untyped", children, kind="oci", extra={"mediaType": None})
    builder.index("kinds/index", "child-twice", [children[0]] * 2, kind="oci")
    builder.index("kinds/index", "empty", [], kind="oci")
    attestation = builder.image("kinds/index", None, [b"in-toto"], kind="oci")
    builder.index(
        "kinds/index", "attested", [children[0], attestation], kind="oci",
        architectures=("amd64", "unknown"),
    )  # fmt: skip
    for kind, media_type in UNCOMPRESSED.items():
        plain = {"layers": [descriptor(b"tar", media_type)]}
        builder.image(f"kinds/{kind}", "uncompressed", [b"tar"], kind=kind, extra=plain)
    artifact(builder, "kinds/artifact", "opa")
    helm = b'{"name":"chart","version":"1.0.0"}'
    builder.layer("kinds/artifact", helm)
    artifact(
        builder, "kinds/artifact", "helm",
        config=descriptor(helm, "application/vnd.cncf.helm.config.v1+json"),
    )  # fmt: skip
    bundle = builder.image("kinds/cnab", None, [layer("invocation image")], kind="oci")
    builder.index("kinds/cnab", "v1", [bundle], kind="oci", extra={
        "annotations": {"io.cnab.runtime_version": "v1.0.0"}})  # fmt: skip
    artifact(
        builder, "kinds/artifact", "subject",
        subject=descriptor(b"not there", "application/vnd.oci.image.manifest.v1+json"),
        artifactType="application/vnd.example",
    )  # fmt: skip
    artifact(
        builder, "kinds/artifact", "annotated",
        annotations={"org.opencontainers.image.base.digest": "sha256:" + "0" * 64},
    )  # fmt: skip
    artifact(builder, "kinds/artifact", f"sha256-{'1' * 64}.sig")
    artifact(builder, "kinds/artifact", f"sha256-{'1' * 64}.att")
    artifact(builder, "kinds/artifact", f"sha256-{'1' * 64}.sbom")
    builder.layer("kinds/artifact", b"misstated")
    artifact(
        builder, "kinds/artifact", "misstated",
        layers=[descriptor(b"misstated", "application/vnd.example") | {"size": 60}],
    )  # fmt: skip
    builder.index("kinds/artifact", f"sha256-{'1' * 64}", [], kind="oci")
    inline = descriptor(EMPTY, "application/vnd.oci.empty.v1+json", data="e30=")
    artifact(builder, "kinds/artifact", "inline-data", config=inline)
    foreign = descriptor(b"elsewhere", LAYER_TYPES["docker"], urls=["https://example.org/layer"])
    own = descriptor(layer("a"), LAYER_TYPES["docker"])
    config = image_config([layer("a")])
    builder.layer("kinds/foreign", config)
    builder.layer("kinds/foreign", layer("a"))
    builder.layer("kinds/foreign", b"elsewhere")
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
        "config": descriptor(config, CONFIG_TYPES["docker"]),
        "layers": [foreign, own],
    }
    builder.manifest("kinds/foreign", "v1", orjson.dumps(manifest))
    longest = "/".join(["a" * 63] * 4)[:235]  # skopeo counts host and port, too: 255
    builder.image(longest, "t" * 128, [layer("a")], kind="oci")
    builder.image("k", "T_.-1", [layer("a")], kind="oci")


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("kinds")
    everything(root)
    return root


@pytest.fixture(scope="module")
def served(kinds: Path) -> Iterator[Registry]:
    with serve(kinds) as registry:
        yield registry


@pytest.fixture
def destination(tmp_path: Path) -> Iterator[Registry]:
    with serve(tmp_path / "destination") as registry:
        yield registry


def test_all_that_skopeo_can_copy_is_exported_as_skopeo_writes_it(
    kinds: Path, served: Registry, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    code, _, error = run("export", kinds, out, "--json", home=tmp_path)
    assert code == 0, error
    names = [str(path.parent.relative_to(out)) for path in out.glob("**/manifest.json")]
    assert len(names) == 27

    for name in names:
        oracle = tmp_path / "oracle" / name
        oracle.parent.mkdir(parents=True, exist_ok=True)
        skopeo(
            "copy", "--all", "--preserve-digests", "--src-tls-verify=false",
            f"docker://{served.host}/{name}", f"dir:{oracle}",
        )  # fmt: skip
        done = subprocess.run(
            ["diff", "-r", oracle, out / name], capture_output=True, text=True, check=False
        )
        assert (name, done.returncode, done.stdout) == (name, 0, "")


def test_check_says_ok_of_all_of_them_but_for_its_remarks(kinds: Path, tmp_path: Path) -> None:
    code, rows, _ = run("check", kinds, "--digests", "--json", home=tmp_path)
    remarks = {
        row["name"]: row["verdict"]
        for row in rows
        if row["message_type"] == "checked" and row["verdict"] != "ok"
    }
    assert (code, remarks) == (
        0,
        {"kinds/artifact:misstated": "misstated-size", "kinds/foreign:v1": "foreign-layer"},
    )


def test_all_of_them_arrive_under_their_digests(
    kinds: Path, destination: Registry, tmp_path: Path
) -> None:
    code, rows, error = run(
        "migrate", kinds, destination.host, PLAIN, "--out", tmp_path / "out", "--json",
        home=tmp_path,
    )  # fmt: skip
    failed = [(row["name"], row["error"]) for row in rows if row["message_type"] == "failed"]
    verified = [row for row in rows if row["message_type"] == "verified"]
    assert (code, failed, len(verified)) == (0, [], 27), error


def test_a_foreign_layer_that_storage_lacks_is_left_to_its_urls(tmp_path: Path) -> None:
    """Skopeo cannot copy this from a registry to a `dir:`, which takes no urls for an answer."""
    everything(tmp_path / "source")
    foreign = hashlib.sha256(b"elsewhere").hexdigest()
    StorageBuilder(tmp_path / "source").data(Digest(f"sha256:{foreign}")).unlink()

    code, _, _ = run("export", tmp_path / "source", tmp_path / "out", home=tmp_path)

    names = {path.name for path in (tmp_path / "out/kinds/foreign:v1").iterdir()}
    assert (code, len(names), foreign in names) == (0, 4, False)


def test_foreign_layers_arrive_as_their_urls_where_the_registry_allows_them(tmp_path: Path) -> None:
    """Harbor does; docker-registry must be told to (validation.manifests.urls.allow)."""
    builder = StorageBuilder(tmp_path / "source")
    config = image_config([layer("a")])
    builder.layer("windows", config)
    builder.layer("windows", layer("a"))
    for kind, media_type in FOREIGN.items():
        foreign = descriptor(b"elsewhere", media_type, urls=["https://example.org/layer"])
        layers = [foreign, descriptor(layer("a"), LAYER_TYPES[kind])]
        raw = image_manifest(config, [], kind=kind, extra={"layers": layers})
        builder.manifest("windows", kind, raw)

    with serve(tmp_path / "destination", urls=True) as destination:
        code, rows, error = run(
            "migrate", tmp_path / "source", destination.host, PLAIN, "--out", tmp_path / "out",
            "--json", home=tmp_path,
        )  # fmt: skip

    names = [row["name"] for row in rows if row["message_type"] == "verified"]
    assert (code, names) == (0, ["windows:docker", "windows:oci"]), error


def test_a_manifest_that_misstates_the_size_of_its_config_gets_a_verdict(tmp_path: Path) -> None:
    """Registries take it, but skopeo neither copies it from a registry nor sends it to one."""
    wrong_size = descriptor(EMPTY, "application/vnd.oci.empty.v1+json") | {"size": 7}
    artifact(StorageBuilder(tmp_path / "source"), "app", "v1", config=wrong_size)
    code, rows, _ = run("check", tmp_path / "source", "--json", home=tmp_path)
    assert (code, rows[1]["verdict"]) == (1, "wrong-size")


@pytest.mark.parametrize(
    ("arguments", "code", "verdict"),
    [([], 1, "wrong-size"), (["--digests"], 0, "misstated-size")],
)
def test_only_digests_tells_a_damaged_layer_of_an_archive_from_a_misstated_one(
    arguments: list[str], code: int, verdict: str, tmp_path: Path
) -> None:
    """A file is read again to see which it is; of an archive nothing is read again unasked."""
    builder = StorageBuilder(tmp_path / "source")
    builder.layer("app", b"whole")
    layers = [descriptor(b"whole", "application/vnd.example") | {"size": 60}]
    artifact(builder, "app", "v1", layers=layers)
    with tarfile.open(tmp_path / "source.tar", "w") as archive:
        archive.add(builder.root / "docker", "docker")

    found, rows, _ = run("check", tmp_path / "source.tar", *arguments, "--json", home=tmp_path)

    checked = [row["verdict"] for row in rows if row["message_type"] == "checked"]
    assert (found, checked) == (code, [verdict])


def schema1(builder: StorageBuilder, repository: str, tag: str) -> str:
    """Docker schema 1 as it lies on disk: the payload without its signature."""
    layers = [layer("newest"), layer("oldest")]
    for content in layers:
        builder.layer(repository, content)
    history = [
        {"v1Compatibility": orjson.dumps({"id": str(n) * 64, "architecture": "amd64", "os": "linux"}
            | ({"parent": "2" * 64} if n == 1 else {})).decode()}
        for n in (1, 2)
    ]  # fmt: skip
    payload = {
        "schemaVersion": 1,
        "name": repository,
        "tag": tag,
        "architecture": "amd64",
        "fsLayers": [{"blobSum": f"sha256:{hashlib.sha256(c).hexdigest()}"} for c in layers],
        "history": history,
    }
    return str(builder.manifest(repository, tag, orjson.dumps(payload)))


def test_schema_1_is_exported_with_its_layers_and_converted_when_pushed(
    destination: Registry, tmp_path: Path
) -> None:
    digest = schema1(StorageBuilder(tmp_path / "source"), "old/app", "v1")
    out = tmp_path / "out"

    code, rows, error = run("export", tmp_path / "source", out, "--json", home=tmp_path)
    assert (code, len(list((out / "old/app:v1").iterdir()))) == (0, 4), error
    code, rows, error = run("push", out, destination.host, PLAIN, "--json", home=tmp_path)

    pushed = next(row for row in rows if row["message_type"] == "pushed")
    assert (code, pushed["converted_from"]) == (0, digest), error
    manifest = skopeo(
        "inspect", "--raw", "--tls-verify=false", f"docker://{destination.host}/old/app:v1"
    )
    assert orjson.loads(manifest)["schemaVersion"] == 2
    assert f"sha256:{hashlib.sha256(manifest.encode()).hexdigest()}" == pushed["digest"]


@pytest.mark.parametrize(
    ("choice", "code", "kind"), [("skip", 0, "skipped"), ("fail", 1, "failed")]
)
def test_schema_1_can_be_left_out_or_be_a_failure(
    choice: str, code: int, kind: str, destination: Registry, tmp_path: Path
) -> None:
    schema1(StorageBuilder(tmp_path / "source"), "old/app", "v1")
    run("export", tmp_path / "source", tmp_path / "out", home=tmp_path)

    found, rows, _ = run(
        "push", tmp_path / "out", destination.host, PLAIN, "--schema1", choice, "--json",
        home=tmp_path,
    )  # fmt: skip

    assert (found, [row["message_type"] for row in rows]) == (code, ["started", kind, "summary"])


def nested(builder: StorageBuilder, repository: str) -> str:
    """An index that lists an index and an image, as buildx and CNAB tools make them."""
    inner = [builder.image(repository, None, [layer(f"inner {n}")], kind="oci") for n in range(2)]
    plain = builder.image(repository, None, [layer("plain")], kind="oci")
    below = builder.index(repository, None, inner, kind="oci")
    return str(builder.index(repository, "v1", [below, plain], kind="oci"))


def test_a_nested_index_arrives_under_its_own_digest_with_all_below_it(
    destination: Registry, tmp_path: Path
) -> None:
    digest = nested(StorageBuilder(tmp_path / "source"), "team/bundle")
    out = tmp_path / "out"
    assert run("export", tmp_path / "source", out, home=tmp_path)[0] == 0

    code, rows, error = run("push", out, destination.host, PLAIN, "--json", home=tmp_path)
    pushed = [(row["name"], row["digest"]) for row in rows if row["message_type"] == "pushed"]
    assert (code, pushed) == (0, [("team/bundle:v1", digest)]), error

    code, rows, error = run("verify", out, destination.host, PLAIN, "--json", home=tmp_path)
    verified = [row["manifests"] for row in rows if row["message_type"] == "verified"]
    assert (code, verified) == (0, [5]), error


def test_untagged_manifests_are_exported_and_pushed_by_digest(
    destination: Registry, tmp_path: Path
) -> None:
    builder = StorageBuilder(tmp_path / "source")
    lost = builder.image("team/app", None, [layer("lost")], kind="oci")
    children = [builder.image("team/app", None, [layer(n)], kind="oci") for n in ("x", "y")]
    builder.index("team/app", "v1", children, kind="oci")
    out = tmp_path / "out"

    run("export", tmp_path / "source", out, "--untagged", home=tmp_path)
    code, rows, error = run("push", out, destination.host, PLAIN, "--json", home=tmp_path)

    pushed = {row["name"] for row in rows if row["message_type"] == "pushed"}
    assert (code, pushed) == (0, {"team/app:v1", f"team/app@{lost}"}), error


def test_skopeo_sync_takes_untagged_images_by_their_directory_names(
    destination: Registry, tmp_path: Path
) -> None:
    builder = StorageBuilder(tmp_path / "source")
    lost = builder.image("team/app", None, [layer("lost")], kind="oci")
    run("export", tmp_path / "source", tmp_path / "out", "--untagged", home=tmp_path)

    skopeo(
        "sync", "--all", "--preserve-digests", "--scoped", "--src", "dir", "--dest", "docker",
        PLAIN, str(tmp_path / "out"), destination.host,
    )  # fmt: skip

    found = skopeo(
        "inspect", "--raw", "--tls-verify=false", f"docker://{destination.host}/team/app@{lost}"
    )
    assert f"sha256:{hashlib.sha256(found.encode()).hexdigest()}" == lost


def test_a_registry_without_tags_says_so_and_what_to_do(tmp_path: Path) -> None:
    StorageBuilder(tmp_path / "source").image("team/app", None, [layer("a")], kind="oci")
    code, _, error = run("check", tmp_path / "source", home=tmp_path)
    assert (code, "--untagged" in error) == (3, True)


def test_a_sha512_layer_is_exported_under_both_names_and_said_to_be_unpushable(
    tmp_path: Path,
) -> None:
    builder = StorageBuilder(tmp_path / "source")
    content = layer("long digest")
    long_hex = hashlib.sha512(content).hexdigest()
    stored = builder.blob(content)
    link = tmp_path / "source/docker/registry/v2/repositories/team/app/_layers/sha512" / long_hex
    link.mkdir(parents=True)
    (link / "link").write_text(stored)
    config = image_config([content])
    builder.layer("team/app", config)
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor(config, CONFIG_TYPES["oci"]),
        "layers": [descriptor(content, LAYER_TYPES["oci"]) | {"digest": f"sha512:{long_hex}"}],
    }
    builder.manifest("team/app", "v1", orjson.dumps(manifest))

    code, rows, _ = run("check", tmp_path / "source", "--json", home=tmp_path)
    assert (code, rows[1]["verdict"]) == (1, "unsupported-digest")
    assert run("export", tmp_path / "source", tmp_path / "out", home=tmp_path)[0] == 0
    names = {path.name for path in (tmp_path / "out/team/app:v1").iterdir()}
    assert {long_hex, f"sha512-{long_hex}"} <= names


def test_a_tag_whose_directory_name_would_be_too_long_gets_a_verdict(tmp_path: Path) -> None:
    builder = StorageBuilder(tmp_path / "source")
    builder.image("a" * 200, "t" * 100, [layer("a")], kind="oci")
    builder.image("b", "v1", [layer("b")], kind="oci")

    code, rows, _ = run("check", tmp_path / "source", "--json", home=tmp_path)
    verdicts = [row["verdict"] for row in rows if row["message_type"] == "checked"]
    assert (code, verdicts) == (1, ["invalid-name", "ok"])
    code, rows, _ = run("export", tmp_path / "source", tmp_path / "out", "--json", home=tmp_path)
    kinds = [row["message_type"] for row in rows]
    assert (code, kinds) == (
        1,
        ["started", "linking", "failed", "exported", "summary"],
    )


def test_after_the_registrys_own_garbage_collection_check_says_which_platforms_are_gone(
    tmp_path: Path,
) -> None:
    """`--delete-untagged` of 2.8.2 takes the children of an index that no tag names themselves."""
    source = tmp_path / "source"
    builder = StorageBuilder(source)
    amd64 = builder.image("app", "v1-amd64", [layer("amd64")], kind="oci")
    others = [builder.image("app", None, [layer(n)], kind="oci") for n in ("arm64", "s390x")]
    builder.index(
        "app", "v1", [amd64, *others], kind="oci", architectures=("amd64", "arm64", "s390x")
    )

    collect_garbage(source)
    code, rows, _ = run("check", source, "--json", home=tmp_path)

    checked = {row["name"]: row for row in rows if row["message_type"] == "checked"}
    index = checked["app:v1"]
    assert (code, checked["app:v1-amd64"]["verdict"]) == (1, "ok")
    assert (index["verdict"], index["whole_platforms"], index["broken_platforms"]) == (
        "missing-blob",
        ["linux/amd64"],
        ["linux/arm64", "linux/s390x"],
    )


def test_a_manifest_without_a_revision_is_exported_all_the_same(tmp_path: Path) -> None:
    """Distribution 2.1.0 linked manifests into `_layers`; we read the blob store alone."""
    builder = StorageBuilder(tmp_path / "source")
    builder.image("app", "v1", [layer("a")], kind="oci")
    shutil.rmtree(builder.v2 / "repositories/app/_manifests/revisions")

    code, rows, _ = run("export", tmp_path / "source", tmp_path / "out", "--json", home=tmp_path)

    assert (code, [row["message_type"] for row in rows]) == (
        0,
        ["started", "linking", "exported", "summary"],
    )
