"""List what a registry holds: every tag with its kind, platforms and sizes."""

from collections.abc import Iterator
from dataclasses import dataclass

from exporter import manifest
from exporter.digest import Digest
from exporter.manifest import Manifest
from exporter.plan import Closure, Selection, candidates, resolve, select
from exporter.storage import Storage

_KINDS = {
    manifest.DOCKER_MANIFEST: "docker-image",
    manifest.DOCKER_LIST: "docker-list",
    manifest.OCI_MANIFEST: "oci-image",
    manifest.OCI_INDEX: "oci-index",
    manifest.DOCKER_SCHEMA1: "docker-schema1",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """One tag of a registry.

    Attributes:
        name: `repository:tag`.
        digest: What the tag's link file names; empty if that cannot be read.
        kind: `docker-image`, `docker-list`, `docker-schema1`, `oci-image`, `oci-index`,
            `oci-artifact`, or `unreadable`.
        platforms: `os/architecture[/variant]` of the children of an index, each once.
        size: Bytes of its manifests, configs and layers, each once, as the manifests declare them.
        shared_size: Bytes of those configs and layers that an image of another digest has too.
        problem: Why it cannot be exported, as far as its manifests tell; empty if they are fine.
    """

    name: str
    digest: str
    kind: str
    platforms: tuple[str, ...] = ()
    size: int = 0
    shared_size: int = 0
    problem: str = ""


@dataclass(frozen=True, slots=True)
class _Content:
    """What is remembered of an image until all are read: blobs are numbers, to stay small."""

    kind: str
    platforms: tuple[str, ...]
    manifests_size: int
    blobs: tuple[int, ...]
    problem: str


def inventory(
    storage: Storage, selection: Selection, *, untagged: bool = False
) -> Iterator[Listed]:
    """Yield every selected image, in the order of `candidates`, then what cannot be read.

    Blobs are not looked for: that is what `check` is for.

    Raises:
        UsageError: Nothing matches.
        SourceError: The registry has no tags at all.
    """
    images, unreadable = select(candidates(storage, untagged=untagged), selection)
    numbers: dict[Digest, int] = {}
    sizes: list[int] = []
    users: list[int] = []
    contents: dict[Digest, _Content] = {}
    for image in images:
        if image.digest in contents:
            continue
        closure = resolve(image.digest, storage.manifest)
        for digest, blob in closure.blobs.items():
            if digest not in numbers:
                numbers[digest] = len(sizes)
                sizes.append(blob.size or 0)
                users.append(0)
            users[numbers[digest]] += 1
        contents[image.digest] = _summarise(closure, tuple(numbers[b] for b in closure.blobs))
    for image in images:
        content = contents[image.digest]
        yield Listed(
            name=str(image.name),
            digest=image.digest,
            kind=content.kind,
            platforms=content.platforms,
            size=content.manifests_size + sum(sizes[blob] for blob in content.blobs),
            shared_size=sum(sizes[blob] for blob in content.blobs if users[blob] > 1),
            problem=content.problem,
        )
    for tag in unreadable:
        yield Listed(name=tag.name, digest="", kind="unreadable", problem=tag.problem.message)


def _summarise(closure: Closure, blobs: tuple[int, ...]) -> _Content:
    root = closure.manifests.get(closure.root)
    return _Content(
        kind=_kind(root) if root else "unreadable",
        platforms=tuple(dict.fromkeys(c.platform for c in root.children if c.platform))
        if root
        else (),
        manifests_size=sum(each.size for each in closure.manifests.values()),
        blobs=blobs,
        problem=next((p.message for p in closure.problems if not p.verdict.exports), ""),
    )


def _kind(root: Manifest) -> str:
    """Tell an OCI artifact by its config, as OCI image-spec, manifest.md does."""
    config = "" if root.config is None else root.config.media_type
    if root.media_type == manifest.OCI_MANIFEST and config not in manifest.IMAGE_CONFIG_TYPES:
        return "oci-artifact"
    return _KINDS[root.media_type]
