"""Manifests that no tag reaches: which they are, and what is said of the broken ones."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from exporter import dirlayout
from exporter.check import check
from exporter.digest import Digest
from exporter.events import Checked, Event
from exporter.export import export
from exporter.plan import candidates
from exporter.reference import ImageName, RepositoryName
from exporter.storage import Storage, TaggedImage, UnreadableTag
from tests.builders import StorageBuilder
from tests.registry import serve, skopeo

APP = RepositoryName("app")


def verdicts(root: Path) -> dict[str, str]:
    events: list[Event] = []
    check(Storage.open(str(root)), untagged=True, observe=events.append)
    return {event.name: event.verdict for event in events if isinstance(event, Checked)}


def names(root: Path) -> list[str]:
    return [str(found.name) for found in candidates(Storage.open(str(root)), untagged=True)]


def revision_link(builder: StorageBuilder, digest: Digest) -> Path:
    return builder.v2 / f"repositories/app/_manifests/revisions/sha256/{digest.hex}/link"


def test_only_what_neither_a_tag_nor_an_index_reaches_is_untagged(tmp_path: Path) -> None:
    builder = StorageBuilder(tmp_path)
    builder.image("app", "v1", [b"tagged"])
    builder.index("app", "v2", [builder.image("app", None, [b"child"])])
    lone_child = builder.image("app", None, [b"child of an untagged index"])
    lone_index = builder.index("app", None, [lone_child])
    lone = builder.image("app", None, [b"lone"])
    expected = ["app:v1", "app:v2", *sorted([f"app@{lone_index}", f"app@{lone}"])]
    assert expected == names(tmp_path)


def test_what_is_tagged_in_one_repository_may_be_untagged_in_another(tmp_path: Path) -> None:
    builder = StorageBuilder(tmp_path)
    digest = builder.image("app", "v1", [b"layer"])
    builder.image("other", None, [b"layer"])
    assert names(tmp_path) == ["app:v1", f"other@{digest}"]


def test_a_deleted_manifest_is_passed_over(tmp_path: Path) -> None:
    """DELETE takes the link file and leaves its directory (distribution 2.8.2)."""
    builder = StorageBuilder(tmp_path)
    builder.image("app", "v1", [b"layer"])
    revision_link(builder, builder.image("app", None, [b"deleted"])).unlink()
    assert names(tmp_path) == ["app:v1"]


def write(content: bytes) -> Callable[[Path], int]:
    return lambda path: path.write_bytes(content)


def directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def symbolic_link(path: Path) -> None:
    path.rename(path.parent / "elsewhere")
    path.symlink_to("elsewhere")


@pytest.mark.parametrize(
    ("damage", "verdict"),
    [
        (write(b""), "empty-link"),
        (write(b"sha256:1234"), "invalid-link"),
        (write(b"sha256:" + b"0" * 64), "missing-manifest"),
        (directory, "invalid-link"),
        (fifo, "invalid-link"),
        (symbolic_link, "invalid-link"),
    ],
)
def test_a_damaged_revision_is_named_not_passed_over(
    damage: Callable[[Path], object], verdict: str, tmp_path: Path
) -> None:
    builder = StorageBuilder(tmp_path)
    builder.image("app", "v1", [b"layer"])
    digest = builder.image("app", None, [b"untagged"])
    damage(revision_link(builder, digest))
    shown = f"app@{'sha256:' + '0' * 64 if verdict == 'missing-manifest' else digest}"
    assert verdicts(tmp_path) == {"app:v1": "ok", shown: verdict}


def test_revisions_that_cannot_be_listed_are_named(tmp_path: Path) -> None:
    builder = StorageBuilder(tmp_path)
    builder.image("app", "v1", [b"layer"])
    revisions = builder.v2 / "repositories/app/_manifests/revisions/sha256"
    revisions.rename(tmp_path / "elsewhere")
    revisions.write_bytes(b"")
    assert verdicts(tmp_path) == {"app:v1": "ok", "app": "invalid-link"}


def test_untagged_manifests_of_a_repository_without_a_legal_name_are_named(tmp_path: Path) -> None:
    builder = StorageBuilder(tmp_path)
    builder.image("app", "v1", [b"layer"])
    builder.image("App", None, [b"untagged"])
    assert verdicts(tmp_path) == {"app:v1": "ok", "App": "invalid-name"}


def test_a_revision_link_that_was_being_written_has_changed_and_is_not_damaged(
    tmp_path: Path,
) -> None:
    builder = StorageBuilder(tmp_path)
    link = revision_link(builder, builder.image("app", None, [b"layer"]))
    content = link.read_bytes()
    link.write_bytes(b"")
    storage = Storage.open(str(tmp_path))
    seen = [each for each in storage.revisions(APP) if isinstance(each, UnreadableTag)]
    still = storage.still_unreadable(seen)
    link.write_bytes(content)
    found = [still, storage.still_unreadable(seen)]
    verdicts = [[each.problem.verdict for each in tags] for tags in found]
    assert verdicts == [["empty-link"], ["changed-during-scan"]]


def test_a_broken_untagged_manifest_is_not_said_to_have_changed(tmp_path: Path) -> None:
    builder = StorageBuilder(tmp_path)
    digest = builder.image("app", None, [b"layer"])
    builder.data(digest).unlink()
    assert verdicts(tmp_path) == {f"app@{digest}": "missing-manifest"}


def test_an_untagged_manifest_has_moved_when_its_link_is_gone(tmp_path: Path) -> None:
    builder = StorageBuilder(tmp_path)
    digest = builder.image("app", None, [b"layer"])
    image = TaggedImage(ImageName(APP, digest), digest)
    storage = Storage.open(str(tmp_path))
    before = storage.has_moved(image)
    revision_link(builder, digest).unlink()
    assert (before, storage.has_moved(image)) == (False, True)


def test_the_content_of_a_revision_link_decides_not_its_path(tmp_path: Path) -> None:
    builder = StorageBuilder(tmp_path)
    digest = builder.image("app", None, [b"layer"])
    link = revision_link(builder, digest)
    link.parent.rename(link.parent.parent / ("0" * 64))
    image = TaggedImage(ImageName(APP, digest), digest)
    assert [image] == list(candidates(Storage.open(str(tmp_path)), untagged=True))
    assert not Storage.open(str(tmp_path)).has_moved(image)


def test_the_content_of_a_tags_link_decides_not_its_history(tmp_path: Path) -> None:
    builder = StorageBuilder(tmp_path)
    builder.image("app", "v1", [b"old"])
    digest = builder.image("app", "v1", [b"new"])
    assert names(tmp_path)[0] == "app:v1"
    assert next(candidates(Storage.open(str(tmp_path)))).digest == digest  # type: ignore[union-attr]


def test_a_manifest_reachable_only_through_layers_is_exported_as_skopeo_writes_it(
    tmp_path: Path,
) -> None:
    """Distribution 2.1.0 linked manifests there; every later version still looks for them."""
    builder = StorageBuilder(tmp_path / "source")
    digest = builder.image("app", "v1", [b"layer"])
    link = revision_link(builder, digest)
    in_layers = builder.v2 / f"repositories/app/_layers/sha256/{digest.hex}"
    link.parent.rename(in_layers)
    out = tmp_path / "out"
    dirlayout.prepare(str(out))
    export(Storage.open(str(tmp_path / "source")), str(out))
    with serve(tmp_path / "source") as registry:
        skopeo(
            "copy", "--all", "--preserve-digests", "--src-tls-verify=false",
            f"docker://{registry.host}/app:v1", f"dir:{tmp_path / 'oracle'}",
        )  # fmt: skip
    done = subprocess.run(
        ["diff", "-r", tmp_path / "oracle", out / "app:v1"], capture_output=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, b"")
