"""Manifests: which bytes are which kind, and what is said of the others."""

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter import manifest
from exporter.digest import Digest
from exporter.manifest import (
    DOCKER_LIST,
    DOCKER_MANIFEST,
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    Manifest,
    ManifestError,
)
from tests.builders import CONFIG_TYPES, Kind, image_config, image_manifest, index_manifest

Json = dict[str, object]

LAYER, CONFIG = b"layer", image_config([b"layer"])
ENTRY: Json = {"digest": Digest.of(LAYER), "size": len(LAYER)}
IMAGES: dict[Kind, str] = {"docker": DOCKER_MANIFEST, "oci": OCI_MANIFEST}
INDEXES: dict[Kind, str] = {"docker": DOCKER_LIST, "oci": OCI_INDEX}


def parse(value: object) -> Manifest:
    return manifest.parse(orjson.dumps(value))


def message_of(content: bytes) -> str:
    with pytest.raises(ManifestError) as caught:
        manifest.parse(content)
    return str(caught.value)


# --- the four kinds


@pytest.mark.parametrize("kind", IMAGES)
@pytest.mark.parametrize("extra", [{}, {"mediaType": None}], ids=["declared", "guessed"])
def test_an_image_has_its_kind_config_and_layers(kind: Kind, extra: Json) -> None:
    raw = image_manifest(CONFIG, [LAYER, LAYER], kind=kind, extra=extra)
    actual = manifest.parse(raw)
    assert actual.config is not None
    assert (actual.media_type, actual.size, actual.is_index) == (IMAGES[kind], len(raw), False)
    assert actual.config.media_type == CONFIG_TYPES[kind]
    assert [blob.digest for blob in actual.blobs()] == [
        Digest.of(b) for b in (CONFIG, LAYER, LAYER)
    ]


@pytest.mark.parametrize(
    ("kind", "extra"),
    [("docker", {}), ("oci", {}), ("oci", {"mediaType": None})],
    ids=["docker", "oci", "oci guessed"],
)
def test_an_index_has_its_kind_and_children(kind: Kind, extra: Json) -> None:
    child = image_manifest(CONFIG, [LAYER], kind=kind)
    actual = manifest.parse(index_manifest([child, child], kind=kind, extra=extra))
    entry = Descriptor(Digest.of(child), len(child), IMAGES[kind], platform="linux/amd64")
    other = Descriptor(Digest.of(child), len(child), IMAGES[kind], platform="linux/arm64")
    assert (actual.media_type, actual.is_index, actual.children) == (
        INDEXES[kind],
        True,
        (entry, other),
    )
    assert list(actual.blobs()) == []


# --- the guess, as containers/image makes it


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"config": ENTRY}, OCI_MANIFEST),
        (
            {"config": ENTRY | {"mediaType": "application/vnd.cncf.helm.config.v1+json"}},
            OCI_MANIFEST,
        ),
        ({"config": ENTRY | {"mediaType": CONFIG_TYPES["docker"]}}, DOCKER_MANIFEST),
        ({"config": ENTRY, "mediaType": "text/plain"}, OCI_MANIFEST),
        ({"config": ENTRY, "mediaType": 7}, OCI_MANIFEST),
        ({"manifests": [ENTRY]}, OCI_INDEX),
        ({"manifests": [ENTRY], "mediaType": DOCKER_LIST}, DOCKER_LIST),
        ({"manifests": [], "mediaType": OCI_INDEX}, OCI_INDEX),
        ({"mediaType": OCI_INDEX}, OCI_INDEX),
    ],
)
def test_the_kind_is_guessed_as_skopeo_does(value: Json, expected: str) -> None:
    assert parse({"schemaVersion": 2} | value).media_type == expected


def test_a_declared_kind_needs_no_schema_version() -> None:
    assert parse({"mediaType": OCI_MANIFEST, "config": ENTRY}).media_type == OCI_MANIFEST


def test_an_empty_index_that_declares_nothing_is_refused_as_by_skopeo() -> None:
    assert message_of(b'{"schemaVersion":2,"manifests":[]}') == "config is missing"


@pytest.mark.parametrize(
    "value",
    [
        {"mediaType": OCI_INDEX, "manifests": [ENTRY], "layers": [ENTRY]},
        {"mediaType": OCI_INDEX, "manifests": [ENTRY], "config": ENTRY},
        {"mediaType": OCI_MANIFEST, "manifests": [ENTRY], "config": ENTRY},
        {"schemaVersion": 2, "manifests": [ENTRY], "config": ENTRY},
    ],
)
def test_what_is_both_image_and_index_is_refused(value: Json) -> None:
    assert message_of(orjson.dumps(value)).startswith("ambiguous: an ")


@pytest.mark.parametrize("version", [0, 3, 2.0, "2", True, None])
def test_another_schema_version_is_refused(version: object) -> None:
    assert message_of(orjson.dumps({"schemaVersion": version})).startswith("schemaVersion is ")


@pytest.mark.parametrize("layers", [None, [], {}, "x"])
def test_schema_1_without_layers_is_refused(layers: object) -> None:
    assert message_of(orjson.dumps({"schemaVersion": 1, "fsLayers": layers})) == (
        "fsLayers is missing"
    )


def test_the_layers_of_schema_1_have_no_size() -> None:
    digest = Digest.of(b"layer")
    value = {"schemaVersion": 1, "fsLayers": [{"blobSum": digest}] * 2}
    assert parse(value).layers == (Descriptor(digest, None),) * 2


# --- descriptors


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        (7, "layers[1] is not an object"),
        ({}, "layers[1].digest is missing"),
        ({"digest": 7, "size": 1}, "layers[1].digest is missing"),
        ({"digest": "sha256:0", "size": 1}, "layers[1].digest is not a digest: 'sha256:0'"),
        ({"digest": ENTRY["digest"]}, "layers[1].size is not a number of bytes"),
    ],
)
def test_a_malformed_field_is_named_by_its_path(entry: object, expected: str) -> None:
    value = {"schemaVersion": 2, "config": ENTRY, "layers": [ENTRY, entry]}
    assert message_of(orjson.dumps(value)) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({}, "config is missing"),
        ({"config": None}, "config is not an object"),
        ({"config": []}, "config is not an object"),
        ({"config": ENTRY, "layers": {}}, "layers is not a list"),
        ({"mediaType": OCI_INDEX, "manifests": {"a": 1}}, "manifests is not a list"),
        ({"mediaType": OCI_INDEX, "manifests": ["a"]}, "manifests[0] is not an object"),
    ],
)
def test_a_malformed_list_or_config_is_named(value: Json, expected: str) -> None:
    assert message_of(orjson.dumps({"schemaVersion": 2} | value)) == expected


@pytest.mark.parametrize(
    "size", [b"1e3", b"1.0", b"-1", b"true", b'"1"', b"null", b"1" + b"0" * 30]
)
def test_a_size_that_is_no_whole_number_of_bytes_is_refused(size: bytes) -> None:
    raw = b'{"schemaVersion":2,"config":{"digest":"%s","size":%s}}' % (
        str(ENTRY["digest"]).encode(),
        size,
    )
    assert message_of(raw) == "config.size is not a number of bytes"


def test_a_layer_with_urls_need_not_be_in_storage() -> None:
    foreign = ENTRY | {"digest": Digest.of(b"foreign"), "urls": ["https://example.com"]}
    actual = parse({"schemaVersion": 2, "config": ENTRY, "layers": [ENTRY, foreign]})
    assert [blob.digest for blob in actual.blobs()] == [ENTRY["digest"], ENTRY["digest"]]


@pytest.mark.parametrize(
    ("platform", "expected"),
    [
        ({"os": "linux", "architecture": "arm", "variant": "v7"}, "linux/arm/v7"),
        ({"os": "linux", "architecture": 7}, "linux"),
        ({"os": "\x1b[31m", "architecture": "arm\n64"}, ""),
        ("linux", ""),
    ],
    ids=["three parts", "of another type", "not printable", "no object"],
)
def test_a_platform_is_what_can_be_shown_of_it(platform: object, expected: str) -> None:
    index = parse({"mediaType": OCI_INDEX, "manifests": [ENTRY | {"platform": platform}]})
    assert index.children[0].platform == expected


def test_a_digest_of_any_registered_algorithm_is_taken() -> None:
    entry = ENTRY | {"digest": Digest.of(LAYER, algorithm="sha512")}
    assert parse({"schemaVersion": 2, "config": entry}).config == Descriptor(
        Digest.of(LAYER, algorithm="sha512"), len(LAYER)
    )


# --- any bytes


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff", b"\xef\xbb\xbf{}", b'{"a":"\xff"}', b"nul\0l"]
)
def test_what_is_not_json_is_refused(content: bytes) -> None:
    assert message_of(content).startswith("not JSON: ")


@pytest.mark.parametrize("content", [b"[]", b"7", b'"a"', b"null"])
def test_what_is_not_an_object_is_refused(content: bytes) -> None:
    assert message_of(content) == "not a JSON object"


def test_a_manifest_has_at_most_4_mib() -> None:
    smallest = image_manifest(CONFIG, [])
    padded = smallest + b" " * (4 * 1024 * 1024 - len(smallest))
    assert manifest.parse(padded).size == 4 * 1024 * 1024
    assert message_of(padded + b" ") == "larger than the 4194304 bytes that registries accept"


@pytest.mark.parametrize("depth", [1_000, 1_000_000])
@pytest.mark.parametrize(
    "before",
    [b"", b'{"schemaVersion":2,"config":', b'{"schemaVersion":'],
    ids=["all", "config", "version"],
)
def test_deep_nesting_is_refused_as_anything_else_that_is_no_manifest(
    before: bytes, depth: int
) -> None:
    raw = before + b"[" * depth + b"]" * depth + (b"}" if before else b"")
    assert len(message_of(raw)) < 200


def test_a_refusal_is_short_however_long_what_it_refuses() -> None:
    assert len(message_of(orjson.dumps({"schemaVersion": "x" * 1_000_000}))) < 200


KEYS = ["schemaVersion", "mediaType", "config", "layers", "manifests", "digest", "size", "platform"]
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-1, 3)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=3)
    | st.sampled_from([OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, str(ENTRY["digest"])]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*KEYS, "urls", "os"]), inner, max_size=6)
        | inner.map(lambda value: ENTRY | {"platform": value})
    ),
    max_leaves=12,
)
OBJECTS = st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=6).map(
    lambda value: orjson.dumps({"schemaVersion": 2} | value)
)


@given(st.binary() | OBJECTS)
def test_any_bytes_are_a_manifest_or_one_clear_error(content: bytes) -> None:
    try:
        actual = manifest.parse(content)
    except ManifestError as error:
        assert 0 < len(str(error)) < 200  # noqa: PT017 - one of two good ends
    else:
        assert actual.is_index == (actual.config is None)
