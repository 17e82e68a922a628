"""Registry storage trees without a registry: written file by file, as distribution lays them out.

```
ROOT/docker/registry/v2/
  blobs/sha256/<2 hex>/<hex>/data
  repositories/<name>/
    _layers/sha256/<hex>/link                      config and layers, never manifests
    _manifests/revisions/sha256/<hex>/link         every manifest
    _manifests/tags/<tag>/current/link             the tag
    _manifests/tags/<tag>/index/sha256/<hex>/link  what the tag ever was
```
A link file is `sha256:<hex>` without a newline. Nothing here imports the reader under test.

Spec: distribution, registry/storage/paths.go.
"""

import os
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Literal

import orjson

from exporter.digest import Digest

Kind = Literal["docker", "oci"]

FIXTURES = Path(__file__).parent.parent / "fixtures"

MANIFEST_TYPES: Mapping[Kind, str] = {
    "docker": "application/vnd.docker.distribution.manifest.v2+json",
    "oci": "application/vnd.oci.image.manifest.v1+json",
}
INDEX_TYPES: Mapping[Kind, str] = {
    "docker": "application/vnd.docker.distribution.manifest.list.v2+json",
    "oci": "application/vnd.oci.image.index.v1+json",
}
CONFIG_TYPES: Mapping[Kind, str] = {
    "docker": "application/vnd.docker.container.image.v1+json",
    "oci": "application/vnd.oci.image.config.v1+json",
}
LAYER_TYPES: Mapping[Kind, str] = {
    "docker": "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "oci": "application/vnd.oci.image.layer.v1.tar+gzip",
}

_BASES = 40
_BASE_LAYERS = 6


def descriptor(content: bytes, media_type: str, **fields: object) -> dict[str, object]:
    """Return the descriptor of `content`, with any further fields."""
    return {
        "mediaType": media_type,
        "size": len(content),
        "digest": str(Digest.of(content)),
        **fields,
    }


def image_config(layers: Sequence[bytes], *, architecture: str = "amd64") -> bytes:
    """Return an image configuration whose diff IDs are the layers' own digests."""
    rootfs = {"type": "layers", "diff_ids": [str(Digest.of(layer)) for layer in layers]}
    return orjson.dumps({"architecture": architecture, "os": "linux", "rootfs": rootfs})


def image_manifest(
    config: bytes,
    layers: Sequence[bytes],
    *,
    kind: Kind = "docker",
    extra: Mapping[str, object] | None = None,
) -> bytes:
    """Return the manifest of an image.

    Args:
        config: Bytes of the config blob.
        layers: Bytes of each layer, in order.
        kind: Decides all media types.
        extra: Top-level fields to add or replace; the value None removes one.
    """
    return _dumps(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPES[kind],
            "config": descriptor(config, CONFIG_TYPES[kind]),
            "layers": [descriptor(layer, LAYER_TYPES[kind]) for layer in layers],
        },
        extra,
    )


def index_manifest(
    children: Sequence[bytes],
    *,
    kind: Kind = "docker",
    architectures: Sequence[str] = ("amd64", "arm64"),
    extra: Mapping[str, object] | None = None,
) -> bytes:
    """Return the index that lists `children`.

    Args:
        children: Bytes of each manifest, in order; one that declares no media type is listed as
            an image manifest of `kind`.
        kind: `docker` gives a manifest list, `oci` an image index.
        architectures: Of the children, in order, repeated if there are more children.
        extra: As for `image_manifest`.
    """
    entries = [
        descriptor(
            child,
            orjson.loads(child).get("mediaType", MANIFEST_TYPES[kind]),
            platform={"architecture": architecture, "os": "linux"},
        )
        for child, architecture in zip(children, cycle(architectures), strict=False)
    ]
    value = {"schemaVersion": 2, "mediaType": INDEX_TYPES[kind], "manifests": entries}
    return _dumps(value, extra)


class StorageBuilder:
    """Writes a registry's storage below `root`; every method may be called again.

    Not thread-safe. Content is never interpreted: whatever is put, is put.

    Attributes:
        root: The registry's root directory, as `serve` takes it.
        v2: `root/docker/registry/v2`.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.v2 = root / "docker/registry/v2"
        self._made: set[str] = set()
        for name in ("blobs/sha256", "repositories"):
            os.makedirs(self.v2 / name, exist_ok=True)

    def blob(self, content: bytes) -> Digest:
        """Store a blob, linked from no repository yet."""
        digest = Digest.of(content)
        self._write(self._data(digest), content)
        return digest

    def data(self, digest: Digest) -> Path:
        """Return where the blob `digest` is, or would be."""
        return Path(self._data(digest))

    def link(self, repository: str, where: str, digest: Digest) -> Path:
        """Write `repositories/<repository>/<where>/link` and return its path.

        Args:
            repository: Its name.
            where: What the link is for: `_layers/sha256/<hex>`,
                `_manifests/tags/<tag>/current` and so on.
            digest: What the link file says.
        """
        path = f"{self.v2}/repositories/{repository}/{where}/link"
        self._write(path, digest.encode())
        return Path(path)

    def layer(self, repository: str, content: bytes) -> Digest:
        """Store a layer or config, linked from `repository`."""
        digest = self.blob(content)
        self.link(repository, f"_layers/sha256/{digest.hex}", digest)
        return digest

    def manifest(self, repository: str, tag: str | None, raw: bytes) -> Digest:
        """Store the bytes of a manifest, its revision and, unless it is None, its tag."""
        digest = self.blob(raw)
        manifests, revision = "_manifests", f"sha256/{digest.hex}"
        self.link(repository, f"{manifests}/revisions/{revision}", digest)
        if tag is not None:
            self.link(repository, f"{manifests}/tags/{tag}/index/{revision}", digest)
            self.link(repository, f"{manifests}/tags/{tag}/current", digest)
        return digest

    def image(
        self,
        repository: str,
        tag: str | None,
        layers: Sequence[bytes],
        *,
        kind: Kind = "docker",
        config: bytes | None = None,
        extra: Mapping[str, object] | None = None,
    ) -> Digest:
        """Store an image whole, untagged if `tag` is None, and return its manifest's digest.

        Args:
            repository: Its name.
            tag: What to call it.
            layers: Bytes of each layer, in order.
            kind: See `image_manifest`.
            config: Bytes of the config blob; one for linux/amd64 if None.
            extra: See `image_manifest`.
        """
        config = image_config(layers) if config is None else config
        for content in (config, *layers):
            self.layer(repository, content)
        return self.manifest(
            repository, tag, image_manifest(config, layers, kind=kind, extra=extra)
        )

    def index(
        self,
        repository: str,
        tag: str | None,
        children: Sequence[Digest],
        *,
        kind: Kind = "docker",
        architectures: Sequence[str] = ("amd64", "arm64"),
        extra: Mapping[str, object] | None = None,
    ) -> Digest:
        """Store an index of manifests that were stored before, and return its digest.

        Args:
            repository: Its name.
            tag: What to call it; untagged if None.
            children: Digests of the manifests, in order.
            kind: See `index_manifest`.
            architectures: See `index_manifest`.
            extra: See `image_manifest`.
        """
        contents = [self.data(child).read_bytes() for child in children]
        raw = index_manifest(contents, kind=kind, architectures=architectures, extra=extra)
        return self.manifest(repository, tag, raw)

    def many(self, tags: int, repositories: int, *, blobs_per_tag: int = 11) -> None:
        """Store a large registry of tiny Docker images: `tags` of them over `repositories`.

        Repository names have one to three components. As in a real company's registry, every
        repository is built on one of 40 bases of 6 layers each, which all of its tags share with
        the other repositories on that base; the config and the remaining layers (4 of 11 blobs)
        are each tag's own. Unique blobs, manifests included: 6 a tag, and 240. The same
        arguments give the same bytes.

        Args:
            tags: How many in total; dealt to the repositories in turn.
            repositories: How many.
            blobs_per_tag: Config and layers of a tag; at least 8.
        """
        names = list(islice(_names(), repositories))
        own = blobs_per_tag - 1 - _BASE_LAYERS
        for number in range(tags):
            turn = number % repositories
            layers = [b"base %d layer %d" % (turn % _BASES, i) for i in range(_BASE_LAYERS)]
            layers += [b"tag %d layer %d" % (number, i) for i in range(own)]
            self.image(names[turn], f"v{number // repositories}", layers)

    def _data(self, digest: Digest) -> str:
        return f"{self.v2}/blobs/{digest.algorithm}/{digest.hex[:2]}/{digest.hex}/data"

    def _write(self, path: str, content: bytes) -> None:
        """Write a file once: it is named by its content, or may be rewritten in place (links)."""
        directory = path.rpartition("/")[0]
        if directory not in self._made:
            os.makedirs(directory, exist_ok=True)
            self._made.add(directory)
        elif path.endswith("/data"):
            return
        with open(path, "wb") as file:
            file.write(content)


def unpack_fixture(destination: Path) -> Path:
    """Unpack `fixtures/registry.tar.xz` below `destination` and return that: a registry's root."""
    with tarfile.open(FIXTURES / "registry.tar.xz") as archive:
        archive.extractall(destination, filter="data")
    return destination


def _names() -> Iterator[str]:
    """Yield distinct repository names of one, two and three components, in turn."""
    number = 0
    while True:
        yield f"app{number}"
        yield f"team{number % 7}/app{number}"
        yield f"group{number % 5}/team{number % 7}/app{number}"
        number += 1


def _dumps(value: dict[str, object], extra: Mapping[str, object] | None) -> bytes:
    merged = value | dict(extra or {})
    return orjson.dumps({key: item for key, item in merged.items() if item is not None})
