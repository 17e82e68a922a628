"""Which file of a registry's storage a name in an archive means: `layout`, read backwards.

No name in an archive ever becomes a path. It is matched here, and paths are computed from the
digest, or the valid names of a repository and a tag, that came out of that.
"""

import re
from dataclasses import dataclass

from exporter.digest import Digest
from exporter.reference import parse_repository_name, parse_tag
from exporter.storage import layout
from exporter.storage.records import printable

_LONGEST_NAME = 4096  # PATH_MAX: no tree had a longer one

# The root is what stands before the leftmost match; `docker/registry/v2` marks it for certain,
# since a repository may be called `repositories`, too.
_ROOT = r"(?:(?P<root>(?:.*?/)?docker/registry/v2|.*?)/)?"
_BLOB = re.compile(
    r"(?:(?P<root>.*)/)?blobs/(?P<algorithm>[a-z0-9]+)/(?P<shard>[0-9a-f]{2})/(?P<hex>[0-9a-f]+)/data",
    re.DOTALL,
)
# Of `_layers` only what says under which sha256 a blob of another digest is stored.
_LINKED = re.compile(r"/_manifests/|/_layers/sha(?:384|512)/")
_LINK = re.compile(
    _ROOT + r"repositories/(?P<name>.+)/"
    r"(?:_manifests/tags/(?P<tag>[^/]+)(?P<current>/current/link)?"
    r"|(?P<kind>_manifests/revisions|_layers)/(?P<algorithm>[a-z0-9]+)/(?P<hex>[0-9a-f]+)/link)",
    re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Blob:
    """Where the content of a digest is."""

    root: str
    digest: Digest


@dataclass(frozen=True, slots=True)
class Link:
    """Where a link file is, or the directory of a tag that should have one.

    Attributes:
        root: What stands before `repositories`.
        tag: `repository:tag` of a tag's link; empty for a revision's or a layer's.
        path: Of the link file below the root; empty if the names are not valid.
        error: What is not valid of the names; empty if all is.
        is_directory: It is the tag's directory.
    """

    root: str
    tag: str
    path: str
    error: str = ""
    is_directory: bool = False


Place = Blob | Link


def place(name: str) -> Place | None:
    """Return which file of a registry's storage a member's name means, if any."""
    is_blob = name.endswith("/data")
    if len(name) > _LONGEST_NAME or not (is_blob or _LINKED.search(name)):
        return None
    name = "/".join(part for part in name.split("/") if part not in {"", "."})
    return _blob(name) if is_blob else _link(name)


def _blob(name: str) -> Blob | None:
    found = _BLOB.fullmatch(name)
    digest = _digest(found) if found else None
    if found is None or digest is None or found["shard"] != digest.hex[:2]:
        return None
    return Blob(found["root"] or "", digest)


def _link(name: str) -> Link | None:
    found = _LINK.fullmatch(name)
    if found is None:
        return None
    root, tag = found["root"] or "", found["tag"]
    shown = printable(f"{found['name']}:{tag}") if tag is not None else ""
    is_directory = tag is not None and found["current"] is None
    try:
        repository = parse_repository_name(found["name"])
        if tag is not None:
            path = layout.tag_link(repository, parse_tag(tag))
            return Link(root, shown, path, is_directory=is_directory)
    except ValueError as error:
        return Link(root, shown, "", f"{error}", is_directory) if shown else None
    digest = _digest(found)
    if digest is None:
        return None
    is_layer = found["kind"] == layout.LAYERS
    link = layout.layer_link if is_layer else layout.revision_link
    return Link(root, "", link(repository, digest))


def _digest(found: re.Match[str]) -> Digest | None:
    try:
        return Digest.parse(f"{found['algorithm']}:{found['hex']}")
    except ValueError:
        return None
