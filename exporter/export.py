"""Build skopeo `dir:` images in OUT out of hard links to the registry's files."""

import os
import threading
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass

from exporter import dirlayout, files, link, prune
from exporter.builder import Batch, Builder
from exporter.digest import Digest
from exporter.dirlayout import Made
from exporter.errors import Interrupted, SkopeoDirError
from exporter.events import Deleted, Event, Exported, Failed, Linking, Observer, Started, silent
from exporter.forks import MAX_ITEMS, in_forks
from exporter.link import LinkMode
from exporter.plan import Selection, candidates, select
from exporter.reference import ImageName
from exporter.storage import Storage, TaggedImage, UnreadableTag

_BATCH = 32  # images that a process takes at a time
_WORTH_FORKING = 512  # images; a fork costs as much as building some dozens
_MOST_PROCESSES = 4
_SYNC_EVERY_SECONDS = 1.0
_SYNC_SHARE = 0.1  # of the time, at most


@dataclass(slots=True, kw_only=True)
class ExportSummary:
    """What an export did.

    Attributes:
        images: Images that are whole in OUT.
        unchanged: Those of them that were right before.
        failed: Images that could not be exported, or not be deleted.
        deleted: Images that the source no longer has, and OUT neither.
        links: Hard links made; in mode `symlink` symbolic ones but for `version`.
        reflinked: Files made that share the blocks of the registry's.
        copied: Files copied.
        unique_bytes: Size of the distinct files that the images made by this run consist of.
        linked_bytes: Size of these images added up; minus `unique_bytes` it is what linking saves.
    """

    images: int = 0
    unchanged: int = 0
    failed: int = 0
    deleted: int = 0
    links: int = 0
    reflinked: int = 0
    copied: int = 0
    unique_bytes: int = 0
    linked_bytes: int = 0


def export(
    storage: Storage,
    out: str,
    *,
    selection: Selection | None = None,
    untagged: bool = False,
    link_mode: LinkMode = LinkMode.AUTO,
    delete: bool = False,
    processes: int | None = None,
    observe: Observer = silent,
) -> ExportSummary:
    """Bring OUT up to date with the registry: every selected tag as a whole `dir:` image.

    An image directory appears whole or not at all. What is right already is left alone, what is
    not is replaced, so running it again after any interruption finishes the work. A tag that
    cannot be exported becomes a `Failed` event and the others go on. An image of which an event
    tells survives a power cut.

    Args:
        storage: The source; never written to.
        out: A directory that `dirlayout.prepare` made ready. The caller holds its lock.
        selection: Which tags; all by default.
        untagged: Also the manifests that no tag reaches.
        link_mode: How files come into images.
        delete: Also remove the selected images of earlier exports that the source no longer has.
        processes: How many build images; None chooses. More than one only where no other thread
            runs, see `forks`.
        observe: Is told about every image.

    Raises:
        UsageError: Nothing matches, or there can be no such links in OUT.
        NoSpaceError: The file system is full, or too small; what was finished stays.
        SourceError: The registry has no tags.
    """
    selection = selection or Selection()
    found = list(candidates(storage, untagged=untagged))
    images, unreadable = select(found, selection)
    observe(Started(verb="export", images=len(images) + len(unreadable)))
    teller = _Teller(out, observe)
    try:
        prune.clear_building(out)
        earlier = dirlayout.read_record(out)
        record = earlier | {image.name: image.digest for image in images}
        mode, reason = _choose(link_mode, storage, out, images)
        observe(Linking(mode=mode, reason=reason))
        made_of = {"source": storage.root, "mode": mode}
        remembers = mode is not LinkMode.SYMLINK  # what such a link points to may be gone
        known = dirlayout.read_made(out, of=made_of) if remembers else {}
        rest = [image for image in images if not teller.knows(image, known)]
        existing = {str(name) for name in dirlayout.staged(out)} if rest else set[str]()
        with (
            storage.opened() as opened,
            closing(Builder(opened, out, mode, existing)) as builder,
        ):
            _require_room(out, rest, builder, existing)
            if record != earlier:
                dirlayout.write_record(out, record)
            _build(builder, rest, processes or _useful(len(rest)), teller)
            prune.clear_building(out)
        if delete:
            gone = _gone(storage, found, earlier, selection)
            for name, event in zip(gone, prune.delete(out, gone), strict=True):
                if isinstance(event, Deleted):
                    del record[name]
                teller.add(event)
            dirlayout.write_record(out, record)
        link.remove_unused_relays(dirlayout.relays(out))
        teller.flush()
        names = {str(name) for name in record}
        made = {name: each for name, each in (known | teller.made).items() if name in names}
        if remembers and made != known:
            dirlayout.write_made(out, made, of=made_of)
    except BrokenPipeError:
        raise  # whoever listened has gone
    except OSError as error:
        raise files.failure(error, out) from None
    for tag in storage.still_unreadable(unreadable):
        problem = tag.problem
        teller.add(
            Failed(verb="export", name=tag.name, error=problem.verdict, message=problem.message)
        )
    teller.tell()
    return teller.summary


def _choose(
    mode: LinkMode, storage: Storage, out: str, images: Iterable[TaggedImage]
) -> tuple[LinkMode, str]:
    """Try the mode with any file of the registry: refuse before anything is built."""
    building = f"{dirlayout.work_directory(out)}/{dirlayout.BUILDING}"
    for image in images:
        path = storage.path(image.digest)
        if os.path.isfile(path):
            return link.choose(mode, path, building)
    return mode, ""


def _require_room(
    out: str, images: Sequence[TaggedImage], builder: Builder, existing: Collection[str]
) -> None:
    """Refuse what cannot fit: a directory for each image, and what has to be copied."""
    room = files.Room.of(out)
    directories = sum(str(image.name) not in existing for image in images)
    sizes = builder.files_needed({image.digest for image in images})
    room.require(
        out,
        size=sum(sizes) + directories * room.block,
        inodes=len(sizes) + directories,
        hint="choose another OUT, or fewer images with --include",
    )


def _gone(
    storage: Storage,
    found: Iterable[TaggedImage | UnreadableTag],
    earlier: Iterable[ImageName],
    selection: Selection,
) -> list[ImageName]:
    """Return the selected images of earlier exports that the source no longer has."""
    there = {tag.name if isinstance(tag, TaggedImage) else tag.image for tag in found}
    return [
        name
        for name in earlier
        if name not in there and selection.means(str(name)) and storage.lacks(name)
    ]


def _in_batches(images: Sequence[TaggedImage], processes: int) -> list[list[TaggedImage]]:
    """Let images of one digest follow each other: manifests are read once however many tags."""
    by_digest: dict[Digest, list[TaggedImage]] = {}
    for image in images:
        by_digest.setdefault(image.digest, []).append(image)
    ordered = [image for group in by_digest.values() for image in group]
    size = max(1, min(_BATCH, len(ordered) // (8 * processes)), -(-len(ordered) // MAX_ITEMS))
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]


def _useful(images: int) -> int:
    """Return how many processes to build with."""
    if images < _WORTH_FORKING or threading.active_count() > 1:
        return 1
    return min(len(os.sched_getaffinity(0)), _MOST_PROCESSES)


def _build(
    builder: Builder, images: Sequence[TaggedImage], processes: int, teller: "_Teller"
) -> None:
    """Build all batches; what was built is told even if the rest cannot be."""
    batches = _in_batches(images, processes)
    try:
        with closing(in_forks(builder.build, batches, processes=processes)) as results:
            for batch in results:
                teller.add_batch(batch)
                if batch.error is not None:
                    raise batch.error
    except Interrupted:
        raise  # at once: telling may take as long as the listener likes
    except SkopeoDirError:
        with suppress(OSError):  # what is wrong is being told already
            prune.clear_building(teller.out)
        teller.flush()
        raise


class _Teller:
    """Adds up what was done, and tells of it once it would survive a power cut."""

    def __init__(self, out: str, observe: Observer) -> None:
        self.summary = ExportSummary()
        self.out = out
        self._observe = observe
        self.made: dict[str, Made] = {}
        self._waiting: list[Event] = []
        self._inodes: set[int] = set()
        self._next = time.monotonic() + _SYNC_EVERY_SECONDS

    def add_batch(self, batch: Batch) -> None:
        """Take note of a batch; from time to time, sync and tell."""
        summary = self.summary
        summary.links += batch.counts.linked + batch.counts.symlinked
        summary.reflinked += batch.counts.reflinked
        summary.copied += batch.counts.copied
        new = batch.sizes.keys() - self._inodes
        self._inodes |= new
        summary.unique_bytes += sum(batch.sizes[inode] for inode in new)
        for event in batch.events:
            self.add(event)
            if isinstance(event, Exported):
                self._note(event)
        if time.monotonic() >= self._next:
            self.flush()

    def _note(self, event: Exported) -> None:
        with suppress(FileNotFoundError):
            status = os.lstat(f"{self.out}/{event.name}")
            self.made[event.name] = Made(
                event.digest, status.st_ino, status.st_ctime_ns, event.files, event.size
            )

    def knows(self, image: TaggedImage, made: Mapping[str, Made]) -> bool:
        """Take note of an image that is what an earlier export left, if it is that."""
        name = str(image.name)
        found = made.get(name)
        if found is None or found.digest != image.digest:
            return False
        try:
            status = os.lstat(f"{self.out}/{name}")
        except OSError:
            return False
        if (status.st_ino, status.st_ctime_ns) != (found.inode, found.changed):
            return False
        self.add(
            Exported(
                name=name,
                digest=image.digest,
                status="unchanged",
                files=found.files,
                size=found.size,
            )
        )
        return True

    def add(self, event: Exported | Deleted | Failed) -> None:
        """Take note of the fate of one image."""
        summary = self.summary
        if isinstance(event, Exported):
            summary.images += 1
            summary.unchanged += event.status == "unchanged"
            if event.status != "unchanged":
                summary.linked_bytes += event.size
        elif isinstance(event, Deleted):
            summary.deleted += 1
        else:
            summary.failed += 1
        self._waiting.append(event)

    def flush(self) -> None:
        """Sync, then tell.

        Raises:
            OSError: What was done may not survive.
        """
        began = time.monotonic()
        files.sync(self.out)
        ended = time.monotonic()
        self._next = ended + max(_SYNC_EVERY_SECONDS, (ended - began) / _SYNC_SHARE)
        self.tell()

    def tell(self) -> None:
        """Tell what was added."""
        waiting, self._waiting = self._waiting, []
        for event in waiting:
            self._observe(event)
