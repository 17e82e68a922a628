"""What real file systems do: their limits, their reflinks, their refusals, and power cuts."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import orjson
import pytest

from exporter import dirlayout
from exporter.check import check
from exporter.digest import Digest
from exporter.errors import NoSpaceError, UsageError
from exporter.events import Event, Exported, Failed, Linking
from exporter.export import ExportSummary, export
from exporter.inventory import inventory
from exporter.link import LinkMode
from exporter.plan import Selection
from exporter.storage import Storage
from tests import loops
from tests.builders import StorageBuilder
from tests.snapshot import snapshot

pytestmark = pytest.mark.slow

XFS = ("xfs", 300)
BTRFS = ("btrfs", 128)


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Make a file system, mount it, and return where; all are gone after the test."""
    with ExitStack() as stack:

        def make(kind: str, *options: str, megabytes: int) -> Path:
            image = stack.enter_context(loops.made(tmp_path, kind, *options, megabytes=megabytes))
            return stack.enter_context(loops.mounted(image, tmp_path / kind))

        yield make


def run(
    registry: StorageBuilder, out: Path, *, mode: LinkMode = LinkMode.AUTO
) -> tuple[ExportSummary, list[Event]]:
    events: list[Event] = []
    dirlayout.prepare(str(out))
    storage = Storage(str(registry.v2))
    return export(storage, str(out), link_mode=mode, observe=events.append), events


def assert_right(out: Path, registry: StorageBuilder) -> None:
    """Every file of every image has the content that its name says."""
    names = list(dirlayout.staged(str(out)))
    assert names
    record = dirlayout.read_record(str(out))
    for name in names:
        for path in (out / str(name)).iterdir():
            content = path.read_bytes()
            if path.name == "version":
                assert content == dirlayout.VERSION
            elif path.name == "manifest.json":
                assert Digest.of(content) == record[name]
            else:
                assert Digest.of(content).hex == path.name.removesuffix(".manifest.json")


def shared(path: Path) -> bool:
    """Tell if all blocks of a file are shared with another (FIEMAP_EXTENT_SHARED)."""
    done = subprocess.run(["filefrag", "-v", path], capture_output=True, text=True, check=True)
    extents = [line for line in done.stdout.splitlines() if line.lstrip()[:1].isdigit()]
    return bool(extents) and all("shared" in line for line in extents)


# --- limits


def test_65005_tags_that_share_a_layer_get_it_on_ext4_by_one_copy(
    mount: Callable[..., Path],
) -> None:
    root = mount("ext4", "-b", "1024", "-N", "400000", "-O", "^has_journal", megabytes=2000)
    registry = StorageBuilder(root / "registry")
    digest = registry.image("app", "v0", [b"layer"])
    tags = registry.v2 / "repositories/app/_manifests/tags"
    for number in range(1, 65_005):
        directory = f"{tags}/v{number}/current"
        os.makedirs(directory)
        with open(f"{directory}/link", "wb") as file:
            file.write(digest.encode())
    before = snapshot(registry.root / "docker/registry/v2/blobs")
    first, _ = run(registry, root / "out")
    assert (first.images, first.failed, first.links) == (65_005, 0, 65_005 * 4)
    assert (first.copied, first.reflinked) == (4, 0)  # manifest, config, layer; our own version
    layer = Digest.of(b"layer").hex
    inodes = {os.stat(f"{root}/out/app:v{number}/{layer}").st_ino for number in range(65_005)}
    assert len(inodes) == 2
    again, _ = run(registry, root / "out")
    assert (again.unchanged, again.links, again.copied) == (65_005, 0, 0)
    assert snapshot(registry.root / "docker/registry/v2/blobs") == before


def test_a_file_system_without_inodes_is_refused_before_anything_is_built(
    mount: Callable[..., Path],
) -> None:
    root = mount("ext4", "-N", "64", megabytes=16)
    registry = StorageBuilder(root / "registry")
    registry.image("app", "v1", [b"layer"])
    dirlayout.prepare(str(root / "out"))
    for number in range(2, 60):
        free = os.statvfs(root).f_ffree
        if free < 5:
            break
        registry.link("app", f"_manifests/tags/v{number}/current", Digest.of(b"none"))
    for name in ("a", "b", "c", "d"):
        if os.statvfs(root).f_ffree > 1:
            (root / name).touch()
    with pytest.raises(NoSpaceError, match=r"needs \d+ inodes and has \d$") as caught:
        run(registry, root / "out")
    assert (caught.value.exit_code, list(dirlayout.staged(str(root / "out")))) == (7, [])


def test_a_file_system_that_fills_keeps_what_is_whole_and_the_next_run_goes_on(
    mount: Callable[..., Path],
) -> None:
    root = mount("ext4", "-b", "4096", megabytes=16)
    registry = StorageBuilder(root / "registry")
    registry.many(120, 3, blobs_per_tag=8)
    dirlayout.prepare(str(root / "out"))
    events: list[Event] = []
    ballast = root / "ballast"

    def fill(event: Event) -> None:
        """Leave a block for each image, as is looked for, but none for what is above them."""
        events.append(event)
        if isinstance(event, Linking):
            free = os.statvfs(root)
            with open(ballast, "wb") as file:
                os.posix_fallocate(file.fileno(), 0, (free.f_bfree - 121) * free.f_frsize)

    with pytest.raises(NoSpaceError):
        export(Storage(str(registry.v2)), str(root / "out"), observe=fill)
    whole = len(list(dirlayout.staged(str(root / "out"))))
    assert 0 < whole < 120
    assert sum(isinstance(event, Exported) for event in events) == whole
    assert list((root / "out/.skopeo-dir/building").iterdir()) == []
    ballast.unlink()
    summary, _ = run(registry, root / "out")
    assert (summary.images, summary.unchanged, summary.failed) == (120, whole, 0)
    assert_right(root / "out", registry)


# --- reflinks


@pytest.mark.parametrize(("kind", "megabytes"), [XFS, BTRFS])
def test_reflinks_share_every_block_and_each_file_is_reflinked_once(
    mount: Callable[..., Path], kind: str, megabytes: int
) -> None:
    root = mount(kind, megabytes=megabytes)
    registry = StorageBuilder(root / "registry")
    for tag in ("v1", "v2"):
        registry.image("app", tag, [os.urandom(100_000)])
    registry.image("team/app", "v1", [bytes(100_000)])
    before = snapshot(registry.root)
    summary, _ = run(registry, root / "out", mode=LinkMode.REFLINK)
    files = len(list(registry.v2.rglob("data")))
    assert (summary.failed, summary.reflinked, summary.copied) == (0, files, 0)
    assert_right(root / "out", registry)
    blobs = [path for path in (root / "out").rglob("*") if len(path.name) == 64]
    os.sync()
    assert [path for path in blobs if path.stat().st_size > 4096 and not shared(path)] == []
    again, _ = run(registry, root / "out", mode=LinkMode.REFLINK)
    assert (again.unchanged, again.reflinked) == (3, 0)
    assert snapshot(registry.root) == before


def test_between_subvolumes_of_btrfs_there_are_no_hard_links_so_auto_reflinks(
    mount: Callable[..., Path],
) -> None:
    root = mount("btrfs", megabytes=128)
    for name in ("a", "b"):
        subprocess.run(
            ["btrfs", "subvolume", "create", root / name], check=True, capture_output=True
        )
    registry = StorageBuilder(root / "a/registry")
    registry.image("app", "v1", [b"layer"])
    summary, events = run(registry, root / "b/out")
    linking = [event for event in events if isinstance(event, Linking)]
    assert [event.mode for event in linking] == ["reflink"]
    assert "different file systems or mounts (or subvolumes" in linking[0].reason
    assert (summary.images, summary.reflinked, summary.copied) == (1, 3, 0)
    with pytest.raises(UsageError, match="different file systems"):
        run(registry, root / "b/strict", mode=LinkMode.HARDLINK)


def test_ext4_has_no_reflinks_and_says_so(mount: Callable[..., Path]) -> None:
    root = mount("ext4", megabytes=16)
    registry = StorageBuilder(root / "registry")
    registry.image("app", "v1", [b"layer"])
    with pytest.raises(UsageError, match="cannot reflink") as caught:
        run(registry, root / "out", mode=LinkMode.REFLINK)
    assert "--link-mode copy" in caught.value.hint


# --- mounts


def test_what_cannot_be_linked_is_copied_if_that_is_asked_for_and_only_once(
    mount: Callable[..., Path], registry: StorageBuilder
) -> None:
    root = mount("ext4", megabytes=16)
    for tag in ("v1", "v2"):
        registry.image("app", tag, [b"base", tag.encode()])
    before = snapshot(registry.root)
    with pytest.raises(UsageError, match="different file systems") as caught:
        run(registry, root / "out")
    assert "--link-mode copy" in caught.value.hint
    assert list(dirlayout.staged(str(root / "out"))) == []
    files = len(list(registry.v2.rglob("data")))
    summary, _ = run(registry, root / "out", mode=LinkMode.COPY)
    assert (summary.images, summary.copied, summary.reflinked) == (2, files, 0)
    assert_right(root / "out", registry)
    again, _ = run(registry, root / "out", mode=LinkMode.COPY)
    assert (again.unchanged, again.copied, again.links) == (2, 0, 0)
    assert snapshot(registry.root) == before


@pytest.mark.parametrize("mode", [LinkMode.COPY, LinkMode.SYMLINK])
def test_a_registry_that_is_mounted_read_only_can_be_copied_or_pointed_to(
    tmp_path: Path, registry: StorageBuilder, mode: LinkMode
) -> None:
    registry.many(20, 4, blobs_per_tag=8)
    before = snapshot(registry.root)
    bound = tmp_path / "bound"
    bound.mkdir()
    subprocess.run(["mount", "--bind", "-o", "ro", registry.root, bound], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", bound], check=True)
        source = StorageBuilder.__new__(StorageBuilder)
        source.root, source.v2 = bound, bound / "docker/registry/v2"
        with pytest.raises(UsageError, match="different file systems or mounts"):
            run(source, tmp_path / "hard")
        storage = Storage(str(source.v2))
        checked = check(storage, digests=True)
        assert (checked.images, checked.failed) == (20, 0)
        assert len(list(inventory(storage, Selection()))) == 20
        summary, _ = run(source, tmp_path / "out", mode=mode)
        assert (summary.images, summary.failed) == (20, 0)
        assert_right(tmp_path / "out", source)
        again, _ = run(source, tmp_path / "out", mode=mode)
        assert again.unchanged == 20
    finally:
        subprocess.run(["umount", bound], check=True)
    assert snapshot(registry.root) == before


def test_on_overlayfs_hard_links_work_and_the_lower_directory_stays_as_it_is(
    mount: Callable[..., Path], tmp_path: Path
) -> None:
    root = mount("ext4", megabytes=64)
    lower = StorageBuilder(root / "lower/registry")
    for tag in ("v1", "v2"):
        lower.image("app", tag, [b"base", tag.encode()])
    before = snapshot(lower.root)
    for name in ("upper", "work", "merged"):
        (root / name).mkdir()
    options = f"lowerdir={root}/lower,upperdir={root}/upper,workdir={root}/work"
    subprocess.run(
        ["mount", "-t", "overlay", "overlay", "-o", options, root / "merged"], check=True
    )
    try:
        registry = StorageBuilder(root / "merged/registry")
        summary, _ = run(registry, root / "merged/out")
        assert (summary.images, summary.failed, summary.copied) == (2, 0, 0)
        assert_right(root / "merged/out", registry)
        again, _ = run(registry, root / "merged/out")
        assert (again.unchanged, again.links) == (2, 0)
        with pytest.raises(UsageError, match="different file systems or mounts"):
            run(lower, root / "merged/other")
    finally:
        subprocess.run(["umount", root / "merged"], check=True)
    assert snapshot(lower.root) == before


def test_an_immutable_file_fails_its_image_with_a_remedy_and_the_others_go_on(
    mount: Callable[..., Path],
) -> None:
    root = mount("ext4", megabytes=16)
    registry = StorageBuilder(root / "registry")
    for tag in ("v1", "v2"):
        registry.image("app", tag, [tag.encode()])
    path = registry.data(Digest.of(b"v2"))
    subprocess.run(["chattr", "+i", path], check=True)
    try:
        _, events = run(registry, root / "out")
    finally:
        subprocess.run(["chattr", "-i", path], check=True)
    failed = [event for event in events if isinstance(event, Failed)]
    assert [(event.name, event.error) for event in failed] == [("app:v2", "link")]
    assert "the kernel does not allow this user to link" in failed[0].message


# --- power cuts

PROGRAM = """
import sys
import exporter.export
from exporter import dirlayout
from exporter.check import check
from exporter.errors import SkopeoDirError
from exporter.events import Exported
from exporter.inventory import inventory
from exporter.link import LinkMode
from exporter.plan import Selection
from exporter.storage import Storage
source, out, mode = sys.argv[1:]
exporter.export._SYNC_EVERY_SECONDS = 0.0
exporter.export._SYNC_SHARE = 1.0
def tell(event):
    if isinstance(event, Exported):
        print(event.name, flush=True)
try:
    dirlayout.prepare(out)
    exporter.export.export(
        Storage.open(source), out, link_mode=LinkMode(mode), processes=2, observe=tell
    )
except SkopeoDirError as error:
    print("error:", error.message, file=sys.stderr)
    sys.exit(error.exit_code)
print("summary", flush=True)
"""


@pytest.mark.parametrize(
    ("kind", "megabytes", "mode"), [("ext4", 64, "auto"), (*XFS, "auto"), (*XFS, "reflink")]
)
def test_what_was_told_survives_a_power_cut(
    tmp_path: Path, kind: str, megabytes: int, mode: str
) -> None:
    moments = 20 if mode == "auto" else 5
    images = 100
    with loops.made(tmp_path, kind, megabytes=megabytes) as image:
        with loops.mounted(image, tmp_path / "disk") as root:
            registry = StorageBuilder(root / "registry")
            registry.many(images, 10, blobs_per_tag=8)
        told_before_the_end = 0
        for moment in range(moments):
            out = root / f"out{moment}"
            with loops.mounted(image, root):
                command = [sys.executable, "-c", PROGRAM, str(registry.root), str(out), mode]
                # One way to read for all of it: communicate() would miss what readline() buffered.
                with (
                    open(tmp_path / "errors", "w+") as errors,
                    subprocess.Popen(
                        command, stdout=subprocess.PIPE, stderr=errors, text=True
                    ) as process,
                ):
                    assert process.stdout is not None
                    told = [process.stdout.readline().strip() for _ in range(moment * 5 + 1)]
                    loops.cut_power(root)
                    told += process.stdout.read().splitlines()
                said = (tmp_path / "errors").read_text()
                assert "" not in told, said
                assert "Traceback" not in said
            told_before_the_end += "summary" not in told
            with loops.mounted(image, root):
                for name in set(told) - {"summary"}:
                    assert_image(out, name, registry)
                assert_right(out, registry)
                summary, _ = run(registry, out, mode=LinkMode(mode))
                assert (summary.images, summary.failed) == (images, 0)
                assert_right(out, registry)
                shutil.rmtree(out)
    assert told_before_the_end > 0


def assert_image(out: Path, name: str, registry: StorageBuilder) -> None:
    """The image is there with all its files."""
    manifest = orjson.loads((out / name / "manifest.json").read_bytes())
    blobs = [manifest["config"], *manifest["layers"]]
    expected = {"manifest.json", "version"} | {each["digest"][7:] for each in blobs}
    assert {path.name for path in (out / name).iterdir()} == expected
