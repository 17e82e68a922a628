"""Which copies bring one image to a destination: one, unless it is an index inside an index.

Skopeo copies an index with all its children in one go, but refuses an index inside an index
(containers/image, copy/multiple.go; container-libs issue 211). So each manifest of such an image
is pushed by its digest, children first, and every index alone.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from graphlib import TopologicalSorter

from exporter import dirlayout
from exporter.digest import Digest
from exporter.manifest import DOCKER_SCHEMA1, Manifest
from exporter.plan import Closure
from exporter.skopeo import Mode


@dataclass(frozen=True, slots=True)
class Copy:
    """One `skopeo copy` that an image needs.

    Attributes:
        digest: The manifest that is pushed.
        mode: What goes along with it.
        blobs: Configs and layers that go along, each once.
        by_digest: Whether it is pushed by its digest, or under the image's own name.
    """

    digest: Digest
    mode: Mode
    blobs: tuple[Digest, ...]
    by_digest: bool


def copies(closure: Closure) -> list[Copy]:
    """Return the copies that a whole image needs, in their order; the last is the image itself."""
    root = closure.manifests[closure.root]
    if root.media_type == DOCKER_SCHEMA1:
        return [Copy(closure.root, Mode.CONVERT, tuple(closure.blobs), by_digest=False)]
    if not any(closure.manifests[child].is_index for child in closure.children()):
        return [Copy(closure.root, Mode.ALL, tuple(closure.blobs), by_digest=False)]
    return children_first(closure)


def children_first(closure: Closure) -> list[Copy]:
    """Return the copies of every manifest for itself, each after all that it lists."""
    graph = {
        digest: [child.digest for child in manifest.children]
        for digest, manifest in closure.manifests.items()
    }
    return [
        _alone(digest, closure.manifests[digest], by_digest=digest != closure.root)
        for digest in TopologicalSorter(graph).static_order()
    ]


def _alone(digest: Digest, manifest: Manifest, *, by_digest: bool) -> Copy:
    mode = Mode.INDEX_ONLY if manifest.is_index else Mode.ALL
    blobs = dict.fromkeys(blob.digest for blob in manifest.blobs())
    return Copy(digest, mode, tuple(blobs), by_digest=by_digest)


@contextmanager
def source_directory(directory: str, copy: Copy) -> Iterator[str]:
    """Give the `dir:` image that a copy is made from.

    For one of the manifests inside an image it is a temporary directory of symbolic links, in
    which that manifest is `manifest.json`. Nothing is written to OUT.

    Raises:
        OSError: The temporary directory cannot be made.
    """
    if not copy.by_digest:
        yield directory
        return
    with tempfile.TemporaryDirectory(prefix="skopeo-dir-") as part:
        manifest = dirlayout.child_manifest(copy.digest)
        os.symlink(f"{directory}/{manifest}", f"{part}/{dirlayout.MANIFEST}")
        for name in {name for blob in copy.blobs for name in dirlayout.blob_names(blob)}:
            os.symlink(f"{directory}/{name}", f"{part}/{name}")
        yield part
