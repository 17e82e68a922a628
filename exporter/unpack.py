"""Bring what an export needs out of an archive into OUT, from where it can be hard-linked."""

from collections.abc import Iterator
from contextlib import contextmanager

from exporter import dirlayout, files
from exporter.digest import Digest
from exporter.errors import SourceError
from exporter.events import Observer, Unpacked, Unpacking, silent
from exporter.plan import Selection, candidates, resolve, select
from exporter.storage import Storage
from exporter.storage.archive import Archive
from exporter.storage.archive_tree import ArchiveTree

_SHARDS = 256  # directories that blobs are spread over


@contextmanager
def unpacked(
    archive: Archive,
    out: str,
    *,
    selection: Selection,
    untagged: bool = False,
    observe: Observer = silent,
) -> Iterator[Storage]:
    """Give the archive as a storage tree below OUT/.skopeo-dir, for as long as the context lasts.

    It is gone after the context; what was linked from it stays. An interrupted run leaves it, and
    the next one goes on with it: no blob that is there, or in an image of OUT, is written again.

    A file is read for its manifests first, and then for the blobs that the selected images need.
    A stream, and a compressed file of which everything is wanted, is read once.

    Args:
        archive: Where the registry's storage is.
        out: As for `export`; the caller holds its lock.
        selection: Which tags will be exported.
        untagged: Whether manifests that no tag reaches will be, too.
        observe: Is told what will be written, before it is.

    Raises:
        SourceError: There is no registry in the archive, or more than one.
        UsageError: Nothing matches the selection.
        NoSpaceError: OUT's file system has not enough bytes or inodes.
    """
    tree = None
    try:
        try:
            tree = ArchiveTree(
                archive,
                f"{dirlayout.work_directory(out)}/unpacked",
                present=dirlayout.blobs(out),
                written=lambda digest, size: observe(Unpacked(digest=digest, size=size)),
            )
            storage = _filled(tree, archive, out, observe, selection=selection, untagged=untagged)
        except OSError as error:
            raise files.failure(error, out) from None
        yield storage
    except SourceError:
        if tree is not None:
            tree.remove()
        archive.raise_damage()  # which explains the rest
        raise
    tree.remove()


def _filled(
    tree: ArchiveTree,
    archive: Archive,
    out: str,
    observe: Observer,
    *,
    selection: Selection,
    untagged: bool,
) -> Storage:
    if archive.plain or (archive.repeatable and not selection.is_everything):
        tree.scan()
        images, needed = _needed(tree.storage(), selection, untagged=untagged)
        missing = [digest for digest in needed if digest in tree.sizes and tree.lacks(digest)]
        count = len(missing)
        _make_sure_of_room(
            archive,
            out,
            observe,
            size=sum(tree.sizes[digest] for digest in missing),
            blobs=count,
            # A blob's file and directory, and the directories of an image and of its repository.
            inodes=2 * count + min(count, _SHARDS) + 2 * images,
        )
        tree.fetch(needed)
    else:
        # Layers hardly get smaller: what is in the file is about the least that comes out of it.
        _make_sure_of_room(archive, out, observe, size=max(0, archive.size - tree.held()))
        tree.unpack()
    return tree.storage()


def _needed(storage: Storage, selection: Selection, *, untagged: bool) -> tuple[int, set[Digest]]:
    """Return how many images are selected, and the stored digests of all that they consist of."""
    images, _ = select(candidates(storage, untagged=untagged), selection)
    needed: set[Digest] = set()
    for root, repository in {
        image.digest: image.name.repository for image in reversed(images)
    }.items():
        closure = resolve(root, storage.manifest)
        needed |= closure.manifests.keys()
        blobs = closure.blobs.keys() | closure.foreign.keys()
        needed |= {storage.canonical(blob, repository) for blob in blobs}
    return len(images), needed


def _make_sure_of_room(
    archive: Archive,
    out: str,
    observe: Observer,
    *,
    size: int,
    blobs: int | None = None,
    inodes: int | None = None,
) -> None:
    """Say what will be written, and refuse what cannot fit, before anything is written.

    Raises:
        NoSpaceError: It cannot.
    """
    room = files.Room.of(out)
    # A blob ends in the middle of a block, and its directory is one.
    size += (blobs or 0) * room.block * 3 // 2
    observe(Unpacking(archive=archive.name, blobs=blobs, size=size, inodes=inodes, free=room.size))
    hint = "choose another OUT, or fewer images with --include"
    room.require(out, size=size, inodes=inodes, hint=hint)
