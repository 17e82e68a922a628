"""Images made of hard links: whole or absent, right or replaced, and the source never touched."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest

from exporter import dirlayout
from exporter.digest import Digest
from exporter.errors import SkopeoDirError, SourceError, UsageError
from exporter.events import Deleted, Event, Exported, Failed, Linking, Started
from exporter.export import ExportSummary, export
from exporter.plan import Selection
from exporter.storage import Storage
from tests.builders import StorageBuilder, image_config, image_manifest
from tests.snapshot import snapshot

VERSION = b"Directory Transport Version: 1.1\n"


def run(registry: StorageBuilder, out: Path, **asked: list[str]) -> list[Event]:
    """Export, and return what was told."""
    events: list[Event] = []
    dirlayout.prepare(str(out))
    export(Storage(str(registry.v2)), str(out), selection=Selection(**asked), observe=events.append)
    return events


def summary(registry: StorageBuilder, out: Path) -> ExportSummary:
    dirlayout.prepare(str(out))
    return export(Storage(str(registry.v2)), str(out))


def outcome(events: list[Event]) -> dict[str, str]:
    """Return the status or error of every image."""
    return {
        event.name: event.status if isinstance(event, Exported) else event.error
        for event in events
        if isinstance(event, Exported | Failed)
    }


def inodes(directory: Path) -> dict[str, int]:
    return {path.name: path.stat().st_ino for path in directory.iterdir()}


def state(out: Path) -> dict[str, tuple[int, int]]:
    """Return inode and, of directories, ctime of all that is in OUT but our own directory."""
    paths = [path for path in [out, *out.rglob("*")] if dirlayout.WORK not in path.parts]
    return {
        str(path): (path.stat().st_ino, path.stat().st_ctime_ns if path.is_dir() else 0)
        for path in paths
    }


def all_kinds(registry: StorageBuilder) -> None:
    """Fill a registry: every kind, names of all depths, shared layers, two tags of one digest."""
    for tag in ("v1", "latest"):
        registry.image("app", tag, [b"base", b"app", b"base"])
    registry.image("team/app", "v1", [b"base"], kind="oci")
    registry.image("team/app/sub/deep", "v1", [])
    children = [registry.image("team/app", None, [b"base", bytes([n])]) for n in range(2)]
    for kind in ("docker", "oci"):
        registry.index("team/multi", kind, [*children, children[0]], kind=kind)


# --- what an image is made of


def test_an_image_has_exactly_the_names_that_skopeo_gives_it(
    registry: StorageBuilder, tmp_path: Path
) -> None:
    layers = [b"one", b"two", b"one"]
    registry.image("team/app", "v1", layers)
    run(registry, tmp_path / "out")
    blobs = {Digest.of(content).hex for content in (*layers, image_config(layers))}
    assert set(inodes(tmp_path / "out/team/app:v1")) == {"manifest.json", "version"} | blobs


def test_an_index_has_every_child_and_all_their_blobs_once(
    registry: StorageBuilder, tmp_path: Path
) -> None:
    layers = [[b"common", b"amd64"], [b"common", b"arm64"]]
    children = [registry.image("app", None, each) for each in layers]
    registry.index("app", "v1", [*children, children[0]])
    run(registry, tmp_path / "out")
    contents = {content for each in layers for content in (*each, image_config(each))}
    expected = {"manifest.json", "version"}
    expected |= {f"{child.hex}.manifest.json" for child in children}
    assert set(inodes(tmp_path / "out/app:v1")) == expected | {
        Digest.of(content).hex for content in contents
    }


def test_a_nested_index_is_flat_in_its_directory(registry: StorageBuilder, tmp_path: Path) -> None:
    inner = registry.index("app", None, [registry.image("app", None, [b"layer"])], kind="oci")
    registry.index("app", "v1", [inner], kind="oci")
    run(registry, tmp_path / "out")
    names = inodes(tmp_path / "out/app:v1")
    assert len([name for name in names if name.endswith(".manifest.json")]) == 2
    assert Digest.of(b"layer").hex in names


def test_every_file_but_version_is_the_registrys_own_inode(
    registry: StorageBuilder, tmp_path: Path
) -> None:
    all_kinds(registry)
    run(registry, tmp_path / "out")
    images = [tmp_path / "out" / str(name) for name in dirlayout.staged(str(tmp_path / "out"))]
    links = {path for image in images for path in image.iterdir() if path.name != "version"}
    wanted = {path: registry.data(Digest.of(path.read_bytes())).stat().st_ino for path in links}
    assert {path: path.stat().st_ino for path in links} == wanted
    assert len(images) == 6


def test_every_version_is_one_inode_of_our_own(registry: StorageBuilder, tmp_path: Path) -> None:
    all_kinds(registry)
    run(registry, tmp_path / "out")
    found = {path.stat().st_ino: path for path in (tmp_path / "out").rglob("version")}
    assert [path.read_bytes() for path in found.values()] == [VERSION]


def test_two_tags_of_one_digest_share_every_inode(registry: StorageBuilder, tmp_path: Path) -> None:
    for name in ("app", "team/app"):
        registry.image(name, "v1", [b"layer"])
    run(registry, tmp_path / "out")
    assert inodes(tmp_path / "out/app:v1") == inodes(tmp_path / "out/team/app:v1")


def test_a_layer_that_may_be_fetched_elsewhere_need_not_be_there(
    registry: StorageBuilder, tmp_path: Path
) -> None:
    foreign = {"digest": Digest.of(b"foreign"), "size": 7, "urls": ["https://example.com"]}
    registry.image("app", "v1", [], extra={"layers": [foreign]})
    assert outcome(run(registry, tmp_path / "out")) == {"app:v1": "made"}


def test_a_registry_of_a_gigabyte_takes_no_data_blocks(
    registry: StorageBuilder, tmp_path: Path
) -> None:
    config, layers = image_config([]), [Digest.of(bytes([n])) for n in range(4)]
    registry.layer("app", config)
    for digest in layers:
        registry.blob(bytes([layers.index(digest)]))
        os.truncate(registry.data(digest), 2**28)
    entries = [{"digest": digest, "size": 2**28} for digest in layers]
    for tag in ("v1", "v2"):
        raw = image_manifest(config, [], extra={"layers": entries, "annotations": {"tag": tag}})
        registry.manifest("app", tag, raw)
    assert summary(registry, tmp_path / "out").unique_bytes > 2**30
    own = {path.stat().st_ino: path.stat() for path in registry.v2.rglob("data")}
    new = [path.lstat() for path in (tmp_path / "out").rglob("*") if not path.is_dir()]
    blocks = {found.st_ino: found.st_blocks for found in new if found.st_ino not in own}
    assert sum(blocks.values()) * 512 <= 16 * 1024


# --- whole or absent


def broken(registry: StorageBuilder) -> dict[str, str]:
    """Fill a registry with all that cannot be exported, and return what must be said of it."""
    registry.image("layer", "gone", [b"gone"])
    registry.data(Digest.of(b"gone")).unlink()
    registry.data(registry.image("manifest", "gone", [b"manifest"])).unlink()
    child = registry.image("child", None, [b"child"])
    registry.index("child", "gone", [registry.image("child", None, [b"layer"]), child])
    registry.data(child).unlink()
    registry.manifest("manifest", "not", b"{}")
    registry.image("link", "empty", [b"layer"])
    (registry.v2 / "repositories/link/_manifests/tags/empty/current/link").write_bytes(b"")
    registry.image("long", "a" * 128, [b"layer"])
    registry.image("b" * 130, "a" * 128, [b"layer"])
    return {
        "layer:gone": "missing-blob",
        "manifest:gone": "missing-manifest",
        "child:gone": "missing-child",
        "manifest:not": "invalid-manifest",
        "link:empty": "empty-link",
        f"long:{'a' * 128}": "made",
        f"{'b' * 130}:{'a' * 128}": "invalid-name",
    }


def test_a_tag_that_cannot_be_exported_is_absent_and_the_others_go_on(
    registry: StorageBuilder, tmp_path: Path
) -> None:
    expected = broken(registry) | {"app:v1": "made", "zoo:v1": "made"}
    for name in ("app", "zoo"):
        registry.image(name, "v1", [b"layer"])
    assert outcome(run(registry, tmp_path / "out")) == expected
    images = {str(name) for name in dirlayout.staged(str(tmp_path / "out"))}
    assert images == {name for name, status in expected.items() if status == "made"}
    assert list((tmp_path / "out/.skopeo-dir/building").iterdir()) == []


def test_a_failed_tag_shares_its_digest_with_no_other_fate(
    registry: StorageBuilder, tmp_path: Path
) -> None:
    for tag in ("v1", "v2"):
        registry.image("app", tag, [b"gone"])
    registry.data(Digest.of(b"gone")).unlink()
    assert outcome(run(registry, tmp_path / "out")) == dict.fromkeys(
        ("app:v1", "app:v2"), "missing-blob"
    )


def test_what_was_exported_stays_when_its_blob_is_lost(
    registry: StorageBuilder, tmp_path: Path
) -> None:
    registry.image("app", "v1", [b"layer"])
    run(registry, tmp_path / "out")
    before = state(tmp_path / "out")
    registry.data(Digest.of(b"layer")).unlink()
    assert outcome(run(registry, tmp_path / "out")) == {"app:v1": "unchanged"}
    assert state(tmp_path / "out") == before


@pytest.mark.parametrize(
    "content", [None, b"", b"[]", b'{"of": {}}', b'{"images": {"app:v1": []}}']
)
def test_without_a_memory_of_the_last_run_every_image_is_looked_into(
    registry: StorageBuilder, tmp_path: Path, content: bytes | None
) -> None:
    registry.image("app", "v1", [b"layer"])
    registry.image("lost", "v1", [b"lost"])
    run(registry, tmp_path / "out")
    registry.data(Digest.of(b"lost")).unlink()
    memory = tmp_path / "out/.skopeo-dir/made.json"
    of = orjson.loads(memory.read_bytes())["of"]
    memory.unlink()
    if content is not None:
        malformed = orjson.dumps({"of": of, "images": {"app:v1": [], "lost:v1": []}})
        memory.write_bytes(malformed if content == b"OF" else content)
    before = state(tmp_path / "out")
    expected = {"app:v1": "unchanged", "lost:v1": "missing-blob"}
    assert outcome(run(registry, tmp_path / "out")) == expected
    assert state(tmp_path / "out") == before


def test_the_memory_of_another_registry_is_of_no_use(
    registry: StorageBuilder, tmp_path: Path
) -> None:
    registry.image("app", "v1", [b"layer"])
    run(registry, tmp_path / "out")
    other = StorageBuilder(tmp_path / "other")
    digest = other.image("app", "v1", [b"layer"])
    assert outcome(run(other, tmp_path / "out")) == {"app:v1": "replaced"}
    found = inodes(tmp_path / "out/app:v1")
    assert found["manifest.json"] == other.data(digest).stat().st_ino


# --- again


def test_a_second_export_changes_nothing(registry: StorageBuilder, tmp_path: Path) -> None:
    all_kinds(registry)
    run(registry, tmp_path / "out")
    before = state(tmp_path / "out")
    assert set(outcome(run(registry, tmp_path / "out")).values()) == {"unchanged"}
    assert state(tmp_path / "out") == before


def test_a_tag_that_moved_is_replaced_and_no_other(
    registry: StorageBuilder, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        registry.image(name, "v1", [b"old"])
    run(registry, tmp_path / "out")
    registry.image("a", "v1", [b"new"])
    assert outcome(run(registry, tmp_path / "out")) == {"a:v1": "replaced", "b:v1": "unchanged"}
    names = inodes(tmp_path / "out/a:v1")
    assert (Digest.of(b"new").hex in names, Digest.of(b"old").hex in names) == (True, False)


def copy_over(path: Path) -> None:
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content)


@pytest.mark.parametrize(
    "harm",
    [
        lambda image: (image / Digest.of(b"layer").hex).unlink(),
        lambda image: (image / "version").unlink(),
        lambda image: copy_over(image / Digest.of(b"layer").hex),
        lambda image: copy_over(image / "version"),
        lambda image: (image / "signature-1").write_bytes(b""),
        lambda image: (image / "directory/below").mkdir(parents=True),
        lambda image: (image / "link").symlink_to("manifest.json"),
        lambda image: [path.unlink() for path in image.iterdir()],
    ],
    ids=[
        *("no layer", "no version", "copied layer", "copied version", "foreign file"),
        *("foreign directory", "symbolic link", "empty"),
    ],
)
def test_an_image_directory_that_is_not_right_is_replaced(
    registry: StorageBuilder, tmp_path: Path, harm: Callable[[Path], object]
) -> None:
    registry.image("app", "v1", [b"layer"])
    run(registry, tmp_path / "out")
    expected = inodes(tmp_path / "out/app:v1")
    harm(tmp_path / "out/app:v1")
    assert outcome(run(registry, tmp_path / "out")) == {"app:v1": "replaced"}
    assert inodes(tmp_path / "out/app:v1") == expected


def test_what_an_interrupted_run_left_is_removed(registry: StorageBuilder, tmp_path: Path) -> None:
    registry.image("app", "v1", [b"layer"])
    dirlayout.prepare(str(tmp_path / "out"))
    building = tmp_path / "out/.skopeo-dir/building"
    (building / "1").mkdir()
    os.link(registry.data(Digest.of(b"layer")), building / "1/manifest.json")
    os.link(registry.data(Digest.of(b"layer")), building / "trial-1")
    assert outcome(run(registry, tmp_path / "out")) == {"app:v1": "made"}
    assert list(building.iterdir()) == []


def test_images_outside_the_selection_stay(registry: StorageBuilder, tmp_path: Path) -> None:
    for name in ("a", "b"):
        registry.image(name, "v1", [name.encode()])
    run(registry, tmp_path / "out", include=["a"])
    before = inodes(tmp_path / "out/a:v1")
    assert outcome(run(registry, tmp_path / "out", include=["b"])) == {"b:v1": "made"}
    assert inodes(tmp_path / "out/a:v1") == before
    assert {str(name) for name in dirlayout.read_record(str(tmp_path / "out"))} == {"a:v1", "b:v1"}


@pytest.mark.parametrize("blocker", ["team", "team/app:v1", "link"])
def test_what_stands_in_the_way_of_an_image_stays_and_the_others_go_on(
    registry: StorageBuilder, tmp_path: Path, blocker: str
) -> None:
    for name in ("team/app", "zoo"):
        registry.image(name, "v1", [b"layer"])
    dirlayout.prepare(str(tmp_path / "out"))
    if blocker == "link":
        (tmp_path / "elsewhere/app:v1/file").mkdir(parents=True)
        (tmp_path / "out/team").symlink_to(tmp_path / "elsewhere")
    else:
        (tmp_path / "out" / blocker).parent.mkdir(exist_ok=True)
        (tmp_path / "out" / blocker).write_bytes(b"precious")
    before = snapshot(tmp_path / "out").keys()
    assert outcome(run(registry, tmp_path / "out")) == {"team/app:v1": "link", "zoo:v1": "made"}
    assert before <= snapshot(tmp_path / "out").keys()


# --- what the source no longer has


def delete(registry: StorageBuilder, out: Path, **asked: list[str]) -> dict[str, str]:
    events: list[Event] = []
    storage = Storage(str(registry.v2))
    selection = Selection(**asked)
    export(storage, str(out), selection=selection, delete=True, observe=events.append)
    deleted = {event.name: "deleted" for event in events if isinstance(event, Deleted)}
    return outcome(events) | deleted


def forget(registry: StorageBuilder, repository: str, tag: str) -> None:
    shutil.rmtree(registry.v2 / f"repositories/{repository}/_manifests/tags/{tag}")


def test_what_the_source_no_longer_has_stays_unless_it_shall_be_deleted(
    registry: StorageBuilder, tmp_path: Path
) -> None:
    for tag in ("v1", "v2"):
        registry.image("team/app", tag, [tag.encode()])
    registry.image("zoo", "v1", [b"zoo"])
    run(registry, tmp_path / "out")
    shutil.rmtree(registry.v2 / "repositories/team")
    assert outcome(run(registry, tmp_path / "out")) == {"zoo:v1": "unchanged"}
    assert (tmp_path / "out/team/app:v1").exists()
    gone = dict.fromkeys(("team/app:v1", "team/app:v2"), "deleted")
    assert delete(registry, tmp_path / "out") == {"zoo:v1": "unchanged", **gone}
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [".skopeo-dir", "zoo:v1"]
    assert {str(name) for name in dirlayout.read_record(str(tmp_path / "out"))} == {"zoo:v1"}


def test_only_what_an_export_made_is_deleted(registry: StorageBuilder, tmp_path: Path) -> None:
    for tag in ("v1", "v2", "v3"):
        registry.image("app", tag, [tag.encode()])
    run(registry, tmp_path / "out")
    shutil.copytree(tmp_path / "out/app:v1", tmp_path / "out/other:v1")
    (tmp_path / "out/app:v2/notes.txt").write_bytes(b"precious")
    for tag in ("v1", "v2"):
        forget(registry, "app", tag)
    expected = {"app:v1": "deleted", "app:v2": "foreign", "app:v3": "unchanged"}
    assert delete(registry, tmp_path / "out") == expected
    assert (tmp_path / "out/other:v1/manifest.json").exists()
    assert (tmp_path / "out/app:v2/notes.txt").read_bytes() == b"precious"


def test_what_the_selection_does_not_mean_is_not_deleted(
    registry: StorageBuilder, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        for tag in ("v1", "v2"):
            registry.image(name, tag, [tag.encode()])
    run(registry, tmp_path / "out")
    for name in ("a", "b"):
        forget(registry, name, "v1")
    assert delete(registry, tmp_path / "out", include=["a"]) == {
        "a:v1": "deleted",
        "a:v2": "unchanged",
    }
    assert (tmp_path / "out/b:v1").exists()


def test_what_cannot_be_read_is_not_taken_to_be_gone(
    registry: StorageBuilder, tmp_path: Path
) -> None:
    for name in ("app", "zoo"):
        registry.image(name, "v1", [name.encode()])
    untagged = registry.image("app", None, [b"untagged"])
    events: list[Event] = []
    dirlayout.prepare(str(tmp_path / "out"))
    storage = Storage(str(registry.v2))
    export(storage, str(tmp_path / "out"), untagged=True, observe=events.append)
    (registry.v2 / "repositories/app/_manifests/tags/v1/current/link").write_bytes(b"")
    assert delete(registry, tmp_path / "out") == {"app:v1": "empty-link", "zoo:v1": "unchanged"}
    names = {str(name) for name in dirlayout.staged(str(tmp_path / "out"))}
    assert names == {"app:v1", "zoo:v1", f"app@{untagged}"}


# --- the source


def test_the_source_is_never_touched(registry: StorageBuilder, tmp_path: Path) -> None:
    all_kinds(registry)
    broken(registry)
    for path in registry.root.rglob("*"):
        os.utime(path, ns=(1, 1))
    before = snapshot(registry.root)
    for _ in range(2):
        run(registry, tmp_path / "out")
        (tmp_path / "out/app:v1/foreign").write_bytes(b"")
    assert snapshot(registry.root) == before
    shutil.rmtree(tmp_path / "out")
    assert snapshot(registry.root) == before


WRITES = "chmod,fchmod,fchmodat,chown,lchown,fchown,fchownat,utimensat,truncate,ftruncate,rename"
WRITES += ",renameat,renameat2,unlink,unlinkat,rmdir,mkdir,mkdirat,setxattr,open,openat,creat"


@pytest.mark.parametrize("mode", ["auto", "copy", "symlink"])
def test_no_system_call_writes_below_the_source(
    registry: StorageBuilder, tmp_path: Path, mode: str
) -> None:
    all_kinds(registry)
    broken(registry)
    registry.image("gone", "v1", [b"gone"])
    log = tmp_path / "log"
    strace = ["strace", "-f", "-y", "-o", str(log), "-e", f"trace={WRITES}"]
    command = [*strace, sys.executable, "-m", "exporter", "export"]
    command += [str(registry.root), str(tmp_path / "out"), "--delete", "--link-mode", mode]
    before = snapshot(registry.root)
    for turn in range(2):
        subprocess.run(command, check=False, capture_output=True)
        calls = [line for line in log.read_text().splitlines() if str(registry.root) in line]
        assert [line for line in calls if "O_RDONLY" not in line] == []
        assert calls
        assert snapshot(registry.root) == before
        if turn == 0:
            forget(registry, "gone", "v1")
            (tmp_path / "out/app:v1/manifest.json").unlink()
            before = snapshot(registry.root)
    assert not (tmp_path / "out/gone:v1").exists()


def test_a_registry_without_tags_makes_nothing(registry: StorageBuilder, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="is empty"):
        run(registry, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".skopeo-dir"]


# --- what is told


def test_the_beginning_and_the_fate_of_every_image_is_told(
    registry: StorageBuilder, tmp_path: Path
) -> None:
    digest = registry.image("app", "v1", [b"layer"])
    size = sum(path.stat().st_size for path in registry.v2.rglob("data"))
    assert run(registry, tmp_path / "out") == [
        Started(verb="export", images=1),
        Linking(mode="auto", reason=""),
        Exported(name="app:v1", digest=digest, status="made", files=3, size=size),
    ]


def test_the_summary_adds_up(registry: StorageBuilder, tmp_path: Path) -> None:
    for tag in ("v1", "v2"):
        registry.image("app", tag, [b"layer"])
    size = sum(path.stat().st_size for path in registry.v2.rglob("data"))
    registry.image("bad", "v1", [b"gone"])
    registry.data(Digest.of(b"gone")).unlink()
    expected = ExportSummary(
        images=2, unchanged=0, failed=1, links=8, unique_bytes=size, linked_bytes=2 * size
    )
    assert summary(registry, tmp_path / "out") == expected
    expected.unchanged, expected.links = 2, 0
    expected.unique_bytes = expected.linked_bytes = 0
    assert summary(registry, tmp_path / "out") == expected


def test_a_selection_that_means_nothing_ends_the_run(
    registry: StorageBuilder, tmp_path: Path
) -> None:
    registry.image("app", "v1", [b"layer"])
    with pytest.raises(UsageError) as caught:
        run(registry, tmp_path / "out", include=["other"])
    assert isinstance(caught.value, SkopeoDirError)
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".skopeo-dir"]
