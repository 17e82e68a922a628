"""Make `fixtures/`: a small registry as a real docker-registry leaves it, and what it says it has.

    python -m scripts.make_fixtures [AMD64_DEB ARM64_DEB]

Images are made of Debian's static busybox, pushed by the real skopeo into a real docker-registry;
its storage tree becomes `registry.tar.xz`, and its own HTTP API's answers `registry.jsonl`. The
same two packages give the same digests. They are downloaded by apt-get with lists, cache and
status of its own, so the machine's architectures and package lists stay as they are.
"""

import gzip
import io
import subprocess
import sys
import tarfile
import tempfile
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPResponse
from pathlib import Path
from typing import cast

import orjson

from exporter.digest import Digest
from tests.builders import (
    FIXTURES,
    INDEX_TYPES,
    LAYER_TYPES,
    MANIFEST_TYPES,
    Kind,
    descriptor,
    image_manifest,
    index_manifest,
)
from tests.registry import serve, skopeo

VERSION = "1:1.35.0-4+deb12u1+b1"
SOURCES = (
    "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]"
    " http://deb.debian.org/debian bookworm main\n"
)
CREATED = "2024-01-01T00:00:00Z"
EPOCH = 1704067200
"""`CREATED` in seconds: the modification time of every file in layers and archive."""

HELM_CONFIG = "application/vnd.cncf.helm.config.v1+json"
HELM_CHART = "application/vnd.cncf.helm.chart.content.v1.tar+gzip"
COSIGN_PAYLOAD = "application/vnd.dev.cosign.simplesigning.v1+json"
OCI_TAR = "application/vnd.oci.image.layer.v1.tar"
IN_TOTO = "application/vnd.in-toto+json"


@dataclass(frozen=True, slots=True)
class Image:
    """A manifest and its blobs; of an index, its children instead."""

    manifest: bytes
    blobs: tuple[bytes, ...] = ()
    children: tuple["Image", ...] = ()

    @property
    def digest(self) -> Digest:
        """Digest of the manifest."""
        return Digest.of(self.manifest)

    def write(self, directory: Path) -> None:
        """Write this as a skopeo `dir:` image."""
        directory.mkdir()
        (directory / "version").write_text("Directory Transport Version: 1.1\n")
        (directory / "manifest.json").write_bytes(self.manifest)
        for child in self.children:
            (directory / f"{child.digest.hex}.manifest.json").write_bytes(child.manifest)
        for blob in (*self.blobs, *(blob for child in self.children for blob in child.blobs)):
            (directory / Digest.of(blob).hex).write_bytes(blob)


def main(arguments: Sequence[str]) -> None:
    """Write `registry.tar.xz` and `registry.jsonl`."""
    with tempfile.TemporaryDirectory(prefix="fixtures-") as name:
        work = Path(name)
        packages = [Path(argument) for argument in arguments] or [
            _download(work / architecture, architecture) for architecture in ("amd64", "arm64")
        ]
        amd64, arm64 = (_rootfs(package) for package in packages)
        root = work / "registry"
        with serve(root) as registry:
            _push_all(registry.host, amd64, arm64, work)
            listing = _listing(registry.host)
        _archive(root, FIXTURES / "registry.tar.xz")
    (FIXTURES / "registry.jsonl").write_bytes(
        b"".join(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in listing)
    )


def _push_all(host: str, amd64: bytes, arm64: bytes, work: Path) -> None:
    """Push every image of the fixture; fixtures/README.md says what each is for."""

    def push(name: str, image: Image) -> None:
        directory = Path(tempfile.mkdtemp(dir=work)) / "image"
        image.write(directory)
        flags = ("--all", "--preserve-digests", "--dest-tls-verify=false")
        skopeo("copy", *flags, f"dir:{directory}", f"docker://{host}/{name}", data_home=work)

    site = _gzip(_tar({"srv/index.html": b"<h1>It works</h1>\n"}))
    notes = _tar({"srv/notes.txt": b"an uncompressed layer\n"})

    docker = (_image("docker", amd64), _image("docker", arm64, architecture="arm64"))
    push("busybox:1.35", docker[0])
    push("busybox:latest", docker[0])
    push("library/busybox:1.35", _index("docker", docker))

    oci = (_image("oci", amd64), _image("oci", arm64, architecture="arm64"))
    push("platform/tools/net/probe:2.0-plain", _index("oci", oci))
    push("platform/tools/net/probe:2.0", _index("oci", oci, attestation=_attestation(oci[0])))

    undeclared = _image("oci", amd64, site, extra={"mediaType": None})
    push("foo:v1", _image("docker", amd64, site))
    push("foo/bar:v1", undeclared)
    push("foo/bar:raw", _image("oci", amd64, notes))
    push("foo/bar:twice", _image("oci", site, site))
    push(f"foo/bar:sha256-{undeclared.digest.hex}.sig", _signature(undeclared))
    push("charts/hello:0.1.0", _helm_chart())

    # Residue: a tag that moved keeps its history, a deleted manifest its empty directory.
    push("foo:latest", docker[0])
    push("foo:latest", _image("docker", site))
    gone = _image("docker", _gzip(_tar({"srv/old.txt": b"old\n"})))
    for repository in ("busybox", "retired"):
        push(f"{repository}:old", gone)
        _request("DELETE", f"http://{host}/v2/{repository}/manifests/{gone.digest}")


def _image(
    kind: Kind,
    *layers: bytes,
    architecture: str = "amd64",
    extra: Mapping[str, object] | None = None,
) -> Image:
    """Return an image of tar layers, compressed by gzip or not."""
    tars = [gzip.decompress(layer) if _is_gzip(layer) else layer for layer in layers]
    config = orjson.dumps(
        {
            "created": CREATED,
            "architecture": architecture,
            "os": "linux",
            "config": {"Cmd": ["/bin/sh"], "Env": ["PATH=/bin"]},
            "rootfs": {"type": "layers", "diff_ids": [str(Digest.of(tar)) for tar in tars]},
            "history": [{"created": CREATED, "created_by": "make_fixtures"} for _ in layers],
        }
    )
    descriptors = [
        descriptor(layer, LAYER_TYPES[kind] if _is_gzip(layer) else OCI_TAR) for layer in layers
    ]
    fields = {"layers": descriptors, **(extra or {})}
    return Image(image_manifest(config, (), kind=kind, extra=fields), (config, *layers))


def _index(kind: Kind, images: Sequence[Image], *, attestation: Image | None = None) -> Image:
    """Return an index of images for amd64 and arm64; the attestation, if any, is of the first."""
    manifest = index_manifest([image.manifest for image in images], kind=kind)
    if attestation is None:
        return Image(manifest, children=tuple(images))
    value = orjson.loads(manifest)
    value["manifests"].append(
        descriptor(
            attestation.manifest,
            MANIFEST_TYPES["oci"],
            annotations={
                "vnd.docker.reference.digest": str(images[0].digest),
                "vnd.docker.reference.type": "attestation-manifest",
            },
            platform={"architecture": "unknown", "os": "unknown"},
        )
    )
    return Image(orjson.dumps(value), children=(*images, attestation))


def _attestation(image: Image) -> Image:
    """Return provenance as buildx attaches it. Spec: moby/buildkit, attestation-storage.md."""
    predicate = "https://slsa.dev/provenance/v0.2"
    subject = [{"name": "pkg:docker/probe@2.0", "digest": {"sha256": image.digest.hex}}]
    statement = orjson.dumps(
        {
            "_type": "https://in-toto.io/Statement/v0.1",
            "predicateType": predicate,
            "subject": subject,
            "predicate": {"builder": {"id": ""}, "buildType": "make_fixtures"},
        }
    )
    rootfs = {"type": "layers", "diff_ids": [str(Digest.of(statement))]}
    config = orjson.dumps({"architecture": "unknown", "os": "unknown", "rootfs": rootfs})
    layer = descriptor(statement, IN_TOTO, annotations={"in-toto.io/predicate-type": predicate})
    manifest = image_manifest(config, (), kind="oci", extra={"layers": [layer]})
    return Image(manifest, (config, statement))


def _signature(image: Image) -> Image:
    """Return a signature as cosign stores it, by nobody. Spec: sigstore/cosign, SIGNATURE_SPEC."""
    critical = {
        "identity": {"docker-reference": "foo/bar"},
        "image": {"docker-manifest-digest": str(image.digest)},
        "type": "cosign container image signature",
    }
    payload = orjson.dumps({"critical": critical, "optional": None})
    annotations = {"dev.cosignproject.cosign/signature": "bm90IGEgc2lnbmF0dXJl"}
    layer = descriptor(payload, COSIGN_PAYLOAD, annotations=annotations)
    config = orjson.dumps(
        {"architecture": "", "os": "", "config": {}, "rootfs": {"type": "layers", "diff_ids": []}}
    )
    return Image(
        image_manifest(config, (), kind="oci", extra={"layers": [layer]}), (config, payload)
    )


def _helm_chart() -> Image:
    """Return a chart as `helm push` stores it. Spec: helm/community, HIP-0006."""
    meta = {"apiVersion": "v2", "name": "hello", "version": "0.1.0", "description": "Says hello"}
    note = b"apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: hello\ndata:\n  say: hello\n"
    files = {"hello/Chart.yaml": orjson.dumps(meta), "hello/templates/hello.yaml": note}
    chart, config = _gzip(_tar(files)), orjson.dumps(meta)
    fields = {
        "config": descriptor(config, HELM_CONFIG),
        "layers": [descriptor(chart, HELM_CHART)],
        "annotations": {"org.opencontainers.image.version": meta["version"]},
    }
    return Image(image_manifest(config, (), kind="oci", extra=fields), (config, chart))


def _listing(host: str) -> list[dict[str, str]]:
    """Return what the registry itself says that it holds: one row a tag, sorted."""
    base, rows = f"http://{host}/v2", []
    for repository in _get(f"{base}/_catalog?n=1000")["repositories"]:
        for tag in sorted(_get(f"{base}/{repository}/tags/list")["tags"] or ()):
            headers = _request("HEAD", f"{base}/{repository}/manifests/{tag}").headers
            digest, media_type = headers["Docker-Content-Digest"], headers["Content-Type"]
            rows.append(
                {"repository": repository, "tag": tag, "digest": digest, "media_type": media_type}
            )
    return rows


def _get(url: str) -> dict[str, list[str]]:
    with _request("GET", url) as response:
        return cast("dict[str, list[str]]", orjson.loads(response.read()))


def _request(method: str, url: str) -> HTTPResponse:
    """Ask the registry; every kind of manifest is accepted."""
    accept = ", ".join((*MANIFEST_TYPES.values(), *INDEX_TYPES.values()))
    request = urllib.request.Request(url, method=method, headers={"Accept": accept})
    return cast("HTTPResponse", urllib.request.urlopen(request))


def _download(directory: Path, architecture: str) -> Path:
    """Download busybox-static with an apt of its own and return the package's path."""
    for name in ("lists/partial", "cache/archives/partial"):
        (directory / name).mkdir(parents=True)
    (directory / "sources.list").write_text(SOURCES)
    (directory / "status").touch()
    options = {
        "APT::Architecture": architecture,
        "APT::Architectures": architecture,
        "APT::Sandbox::User": "root",
        "Dir::Etc::sourcelist": directory / "sources.list",
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::State::lists": directory / "lists",
        "Dir::State::status": directory / "status",
        "Dir::Cache": directory / "cache",
    }
    apt = ["apt-get", "-qq", *(f"-o{key}={value}" for key, value in options.items())]
    for command in (["update"], ["download", f"busybox-static={VERSION}"]):
        subprocess.run([*apt, *command], cwd=directory, check=True)
    return next(directory.glob("*.deb"))


def _rootfs(package: Path) -> bytes:
    """Return a layer with the package's busybox, as /bin/sh, and its licence.

    Its gzip stream stores instead of compressing: every byte is still there to be copied, but xz
    then finds the program itself, and the archive is half as large.
    """
    unpacked = subprocess.run(
        ["dpkg-deb", "--fsys-tarfile", package], check=True, capture_output=True
    ).stdout
    licence = "usr/share/doc/busybox-static/copyright"
    with tarfile.open(fileobj=io.BytesIO(unpacked)) as archive:
        files = {
            name: archive.extractfile(f"./{name}").read()  # type: ignore[union-attr] # both exist
            for name in ("bin/busybox", licence)
        }
    return _gzip(_tar(files, links={"bin/sh": "busybox"}), level=0)


def _tar(files: Mapping[str, bytes], *, links: Mapping[str, str] | None = None) -> bytes:
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in files.items():
            member = _member(name, tarfile.REGTYPE, 0o755 if name.startswith("bin/") else 0o644)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        for name, target in (links or {}).items():
            member = _member(name, tarfile.SYMTYPE, 0o777)
            member.linkname = target
            archive.addfile(member)
    return output.getvalue()


def _archive(root: Path, target: Path) -> None:
    """Pack the tree below `root`, sorted, with fixed owners, modes and times."""
    with tarfile.open(target, "w:xz", format=tarfile.USTAR_FORMAT, preset=9) as archive:
        for path in sorted(root.rglob("*")):
            name = str(path.relative_to(root))
            if path.is_dir():
                archive.addfile(_member(name, tarfile.DIRTYPE, 0o755))
                continue
            member = _member(name, tarfile.REGTYPE, 0o644)
            member.size = path.stat().st_size
            with path.open("rb") as file:
                archive.addfile(member, file)


def _member(name: str, kind: bytes, mode: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.mode, member.mtime = kind, mode, EPOCH
    return member


def _gzip(content: bytes, *, level: int = 9) -> bytes:
    output = io.BytesIO()  # unlike gzip.compress, GzipFile's header is the same in every Python
    with gzip.GzipFile(fileobj=output, mode="wb", compresslevel=level, mtime=0) as file:
        file.write(content)
    return output.getvalue()


def _is_gzip(content: bytes) -> bool:
    return content.startswith(b"\x1f\x8b")


if __name__ == "__main__":
    main(sys.argv[1:])
