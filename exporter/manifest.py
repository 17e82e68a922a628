"""Manifests: the five kinds, parsed once, as far as moving an image needs.

The bytes of a manifest are its identity. They are read here and never written again.

Spec: OCI image-spec, manifest.md, image-index.md; distribution/docs, manifest-v2-2.md.
The kind is guessed as containers/image does (`manifest.GuessMIMEType`), since storage keeps no
media type and skopeo sends its own guess as Content-Type.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import orjson

from exporter.digest import Digest

DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
DOCKER_SCHEMA1 = "application/vnd.docker.distribution.manifest.v1+json"
_DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
_OCI_CONFIG = "application/vnd.oci.image.config.v1+json"

IMAGE_TYPES = frozenset({DOCKER_MANIFEST, OCI_MANIFEST})
INDEX_TYPES = frozenset({DOCKER_LIST, OCI_INDEX})
IMAGE_CONFIG_TYPES = frozenset({_DOCKER_CONFIG, _OCI_CONFIG})

MAX_SIZE = 4 * 1024 * 1024
"""Largest manifest in bytes: what distribution and Harbor accept (handlers/manifests.go)."""


class ManifestError(ValueError):
    """The bytes are no manifest; the message says what is wrong and at which field."""


class Descriptor(NamedTuple):
    """One reference of a manifest.

    Attributes:
        digest: What it refers to.
        size: Bytes, as declared by the manifest; None where it does not say (Docker schema 1).
        media_type: As declared; empty if absent.
        urls: True if the content may be fetched elsewhere, so storage need not have it.
        platform: `os/architecture[/variant]` of an index entry, as far as it is there and fit for
            a terminal; empty otherwise.
    """

    digest: Digest
    size: int | None
    media_type: str = ""
    urls: bool = False
    platform: str = ""


class Manifest(NamedTuple):
    """A parsed manifest: an image has `config` and `layers`, an index has `children`.

    Attributes:
        media_type: One of the five constants of this module, guessed if undeclared.
        size: Bytes of the manifest itself.
        config: Config blob of an image; None for an index and for Docker schema 1.
        layers: Layer blobs in order, duplicates kept.
        children: Manifests that an index lists, in order, duplicates kept.
    """

    media_type: str
    size: int
    config: Descriptor | None = None
    layers: tuple[Descriptor, ...] = ()
    children: tuple[Descriptor, ...] = ()

    @property
    def is_index(self) -> bool:
        """True if this lists other manifests."""
        return self.media_type in INDEX_TYPES

    def blobs(self) -> Iterator[Descriptor]:
        """Yield the config and layers that storage must have (one with urls may be elsewhere)."""
        if self.config is not None:
            yield self.config
        for layer in self.layers:
            if not layer.urls:
                yield layer


def parse(content: bytes) -> Manifest:
    """Return the manifest that `content` is.

    Raises:
        ManifestError: Too large, not JSON, of no kind that can be pushed, or a field is malformed.
    """
    if len(content) > MAX_SIZE:
        raise ManifestError(f"larger than the {MAX_SIZE} bytes that registries accept")
    try:
        value = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise ManifestError(f"not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ManifestError("not a JSON object")
    media_type = _media_type(value)
    if media_type == DOCKER_SCHEMA1:
        return Manifest(media_type, len(content), layers=_schema1_layers(value))
    if media_type in INDEX_TYPES:
        if value.get("layers") or value.get("config"):
            raise ManifestError("ambiguous: an index with layers or config")
        return Manifest(media_type, len(content), children=_descriptors(value, "manifests"))
    if value.get("manifests"):
        raise ManifestError("ambiguous: an image with manifests")
    if "config" not in value:
        raise ManifestError("config is missing")
    try:
        config = _descriptor(value["config"])
    except ManifestError as error:
        raise ManifestError(f"config{error}") from None
    return Manifest(media_type, len(content), config=config, layers=_descriptors(value, "layers"))


def _media_type(value: dict[str, Any]) -> str:
    """Guess as `manifest.GuessMIMEType` of containers/image does.

    Raises:
        ManifestError: The kind is none of the five.
    """
    declared = value.get("mediaType")
    if isinstance(declared, str) and declared in IMAGE_TYPES | INDEX_TYPES:
        return declared
    version = value.get("schemaVersion")
    if type(version) is not int:
        raise ManifestError("schemaVersion is missing or no number")
    if version == 1:
        return DOCKER_SCHEMA1
    if version != 2:
        raise ManifestError(f"schemaVersion is {version}, not 2")
    config = value.get("config")
    config_type = config.get("mediaType") if isinstance(config, dict) else None
    if config_type == _OCI_CONFIG:
        return OCI_MANIFEST
    if config_type == _DOCKER_CONFIG:
        return DOCKER_MANIFEST
    if value.get("manifests") and not config:
        return OCI_INDEX
    return OCI_MANIFEST


def _descriptors(value: dict[str, Any], key: str) -> tuple[Descriptor, ...]:
    items = value.get(key)
    if items is None:
        return ()
    if not isinstance(items, list):
        raise ManifestError(f"{key} is not a list")
    found: list[Descriptor] = []
    try:
        for item in items:
            found.append(_descriptor(item))  # noqa: PERF401 - how many there are is where it broke
    except ManifestError as error:
        raise ManifestError(f"{key}[{len(found)}]{error}") from None
    return tuple(found)


def _schema1_layers(value: dict[str, Any]) -> tuple[Descriptor, ...]:
    """Return the layers of Docker schema 1, newest first, as it lists them.

    Spec: distribution, docs/spec/manifest-v2-1.md. The registry stores the payload without its
    signatures, and signs it anew when it is asked for.
    """
    items = value.get("fsLayers")
    if not isinstance(items, list) or not items:
        raise ManifestError("fsLayers is missing")
    found: list[Descriptor] = []
    for item in items:
        digest = item.get("blobSum") if isinstance(item, dict) else None
        found.append(Descriptor(_digest(digest, f"fsLayers[{len(found)}].blobSum"), None))
    return tuple(found)


def _descriptor(item: object) -> Descriptor:
    """Return what an object describes; the message of an error goes on where a path ends."""
    if not isinstance(item, dict):
        raise ManifestError(" is not an object")
    digest = _digest(item.get("digest"), ".digest")
    size, media_type, platform = item.get("size"), item.get("mediaType"), item.get("platform")
    if type(size) is not int or size < 0:
        raise ManifestError(".size is not a number of bytes")
    return Descriptor(
        digest,
        size,
        media_type if isinstance(media_type, str) else "",
        bool(item.get("urls")),
        _platform(platform) if platform else "",
    )


def _digest(value: object, where: str) -> Digest:
    if not isinstance(value, str):
        raise ManifestError(f"{where} is missing")
    try:
        return Digest.parse(value)
    except ValueError as error:
        raise ManifestError(f"{where} is {error}") from None


def _platform(value: object) -> str:
    if not isinstance(value, dict):
        return ""
    fields = cast("dict[str, object]", value)
    parts = [fields.get(key) for key in ("os", "architecture", "variant")]
    return "/".join(p for p in parts if isinstance(p, str) and p and p.isprintable())
