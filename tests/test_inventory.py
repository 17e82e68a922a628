"""What `list` says of every tag."""

import pytest

from exporter.errors import UsageError
from exporter.inventory import Listed, inventory
from exporter.plan import Selection
from exporter.storage import Storage
from tests.builders import StorageBuilder, image_config


def listed(registry: StorageBuilder, **asked: list[str]) -> list[Listed]:
    return list(inventory(Storage(str(registry.v2)), Selection(**asked)))


def size(registry: StorageBuilder, *contents: bytes) -> int:
    """Return the bytes of blobs that must be in the registry."""
    return sum(registry.data(registry.blob(content)).stat().st_size for content in contents)


def test_an_image_has_the_size_of_its_manifest_config_and_layers(registry: StorageBuilder) -> None:
    layers = [b"one", b"another"]
    digest = registry.image("app", "v1", [*layers, layers[0]])
    manifest = registry.data(digest).read_bytes()
    expected = Listed(
        name="app:v1",
        digest=digest,
        kind="docker-image",
        size=size(registry, manifest, image_config([*layers, layers[0]]), *layers),
    )
    assert listed(registry) == [expected]


def test_an_index_has_its_platforms_and_the_size_of_all_below_it(registry: StorageBuilder) -> None:
    children = [registry.image("app", None, [b"one", bytes([n])]) for n in range(3)]
    digest = registry.index("app", "v1", children, kind="oci", architectures=["amd64", "arm64"])
    manifests = [registry.data(each).read_bytes() for each in (digest, *children)]
    configs = [image_config([b"one", bytes([n])]) for n in range(3)]
    expected = Listed(
        name="app:v1",
        digest=digest,
        kind="oci-index",
        platforms=("linux/amd64", "linux/arm64"),
        size=size(registry, *manifests, *configs, b"one", b"\x00", b"\x01", b"\x02"),
    )
    assert listed(registry) == [expected]


HELM = {"mediaType": "application/vnd.cncf.helm.config.v1+json", "size": 2}
PLUGIN = {"mediaType": "application/vnd.docker.plugin.v1+json", "size": 2}


def test_every_kind_has_its_word(registry: StorageBuilder) -> None:
    empty = {"digest": registry.layer("app", b"{}")}
    docker = registry.image("app", "1", [b"layer"])
    oci = registry.image("app", "2", [b"layer"], kind="oci")
    registry.index("app", "3", [docker])
    registry.index("app", "4", [oci], kind="oci")
    registry.image("app", "5", [b"chart"], kind="oci", extra={"config": HELM | empty})
    registry.image("app", "6", [b"plugin"], extra={"config": PLUGIN | empty})
    assert [row.kind for row in listed(registry)] == [
        *("docker-image", "oci-image", "docker-list", "oci-index", "oci-artifact", "docker-image")
    ]


def test_shared_is_what_an_image_of_another_digest_has_too(registry: StorageBuilder) -> None:
    for name in ("a", "b"):
        registry.image(name, "v1", [b"common", name.encode()])
    registry.image("alone", "v1", [b"own"])
    registry.image("alone", "same", [b"own"])
    actual = {row.name: row.shared_size for row in listed(registry)}
    assert actual == {
        "a:v1": len(b"common"),
        "alone:same": 0,
        "alone:v1": 0,
        "b:v1": len(b"common"),
    }


def test_a_missing_child_is_a_problem_and_the_rest_is_counted(registry: StorageBuilder) -> None:
    children = [registry.image("app", None, [bytes([n])]) for n in range(2)]
    registry.index("app", "v1", children)
    registry.data(children[1]).unlink()
    (row,) = listed(registry)
    assert (row.kind, row.problem) == (
        "docker-list",
        f"the manifest {children[1]} is not in the blob store; it is the index's linux/arm64",
    )


def test_a_missing_manifest_leaves_an_unreadable_image_with_its_digest(
    registry: StorageBuilder,
) -> None:
    digest = registry.image("app", "v1", [b"layer"])
    registry.data(digest).unlink()
    (row,) = listed(registry)
    assert (row.digest, row.kind, row.size) == (digest, "unreadable", 0)


def test_unreadable_tags_come_last(registry: StorageBuilder) -> None:
    for tag in ("v1", "v2"):
        registry.image("app", tag, [b"layer"])
    (registry.v2 / "repositories/app/_manifests/tags/v1/current/link").write_bytes(b"")
    assert [(row.name, row.kind) for row in listed(registry)] == [
        ("app:v2", "docker-image"),
        ("app:v1", "unreadable"),
    ]


def test_blobs_are_not_looked_for(registry: StorageBuilder) -> None:
    registry.image("app", "v1", [b"layer"])
    registry.data(registry.blob(b"layer")).unlink()
    assert [row.problem for row in listed(registry)] == [""]


def test_only_what_is_selected_is_listed_and_shared(registry: StorageBuilder) -> None:
    for name in ("a", "b"):
        registry.image(name, "v1", [b"common", name.encode()])
    assert [(row.name, row.shared_size) for row in listed(registry, include=["a"])] == [("a:v1", 0)]
    with pytest.raises(UsageError, match="no image matches"):
        listed(registry, include=["c"])
