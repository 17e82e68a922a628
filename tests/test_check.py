"""What `check` says of an index that is not whole, and how much it reads."""

import os
from collections import Counter
from pathlib import Path

import pytest

from exporter.check import CheckSummary, check
from exporter.digest import Digest
from exporter.events import Checked, Event, Hashed
from exporter.storage import BlobFile, Storage
from exporter.verdict import Verdict
from tests.builders import StorageBuilder

PLATFORMS = ("amd64", "arm64", "s390x")


class Counting(Storage):
    """Counts how often each blob is looked at, read as a manifest, and hashed."""

    looked: Counter[Digest]
    hashed: Counter[Digest]

    def __init__(self, root: Path) -> None:
        super().__init__(str(root))
        self.looked, self.hashed = Counter(), Counter()

    def blob(self, digest: Digest) -> BlobFile:
        self.looked[digest] += 1
        return super().blob(digest)

    def hash(self, digest: Digest) -> Digest:
        self.hashed[digest] += 1
        return super().hash(digest)


def look(root: Path, *, digests: bool = False) -> dict[str, Checked]:
    events: list[Event] = []
    check(Storage.open(str(root)), digests=digests, observe=events.append)
    return {event.name: event for event in events if isinstance(event, Checked)}


def index(builder: StorageBuilder) -> list[Digest]:
    """Store an index of three platforms, a layer each, as app:v1; return its children."""
    children = [builder.image("app", None, [name.encode()], kind="oci") for name in PLATFORMS]
    builder.index("app", "v1", children, kind="oci", architectures=PLATFORMS)
    return children


def test_a_whole_index_has_neither_whole_nor_broken_platforms(tmp_path: Path) -> None:
    index(StorageBuilder(tmp_path))
    found = look(tmp_path)["app:v1"]
    assert (found.verdict, found.whole_platforms, found.broken_platforms) == ("ok", (), ())


def test_a_missing_layer_breaks_its_platform_alone(tmp_path: Path) -> None:
    builder = StorageBuilder(tmp_path)
    index(builder)
    builder.data(Digest.of(b"arm64")).unlink()
    found = look(tmp_path)["app:v1"]
    assert (found.whole_platforms, found.broken_platforms) == (
        ("linux/amd64", "linux/s390x"),
        ("linux/arm64",),
    )


def test_a_missing_child_is_named_by_its_platform(tmp_path: Path) -> None:
    builder = StorageBuilder(tmp_path)
    builder.data(index(builder)[2]).unlink()
    found = look(tmp_path)["app:v1"]
    assert (found.verdict, found.whole_platforms, found.broken_platforms) == (
        "missing-child",
        ("linux/amd64", "linux/arm64"),
        ("linux/s390x",),
    )
    assert "linux/s390x" in found.findings[0]["message"]


def test_a_damaged_layer_breaks_its_platform_when_digests_are_asked_for(tmp_path: Path) -> None:
    builder = StorageBuilder(tmp_path)
    index(builder)
    builder.data(Digest.of(b"amd64")).write_bytes(b"AMD64")
    assert look(tmp_path)["app:v1"].verdict == "ok"
    found = look(tmp_path, digests=True)["app:v1"]
    assert (found.verdict, found.broken_platforms) == ("wrong-digest", ("linux/amd64",))


def test_a_layer_that_all_platforms_share_breaks_them_all(tmp_path: Path) -> None:
    builder = StorageBuilder(tmp_path)
    layers = [[b"shared", name.encode()] for name in PLATFORMS]
    children = [builder.image("app", None, each, kind="oci") for each in layers]
    builder.index("app", "v1", children, kind="oci", architectures=PLATFORMS)
    builder.data(Digest.of(b"shared")).unlink()
    found = look(tmp_path)["app:v1"]
    assert (found.whole_platforms, len(found.broken_platforms)) == ((), 3)


def test_what_is_broken_far_below_breaks_the_inner_index_that_leads_to_it(tmp_path: Path) -> None:
    builder = StorageBuilder(tmp_path)
    images = [builder.image("app", None, [name.encode()], kind="oci") for name in PLATFORMS]
    inner = [builder.index("app", None, [image], kind="oci") for image in images]
    middle = [builder.index("app", None, [each], kind="oci") for each in inner]
    builder.index("app", "v1", middle, kind="oci", architectures=PLATFORMS)
    builder.data(Digest.of(b"amd64")).unlink()
    found = look(tmp_path)["app:v1"]
    assert (found.whole_platforms, found.broken_platforms) == (
        ("linux/arm64", "linux/s390x"),
        ("linux/amd64",),
    )


def test_a_broken_child_that_is_listed_often_is_named_once(tmp_path: Path) -> None:
    builder = StorageBuilder(tmp_path)
    child = builder.image("app", None, [b"layer"], kind="oci")
    builder.index("app", "v1", [child] * 5, kind="oci", architectures=["amd64"])
    builder.data(child).unlink()
    assert look(tmp_path)["app:v1"].broken_platforms == ("linux/amd64",)


def test_every_finding_names_a_file_and_what_can_be_done(tmp_path: Path) -> None:
    builder = StorageBuilder(tmp_path)
    builder.data(index(builder)[0]).unlink()
    builder.index("app", "outer", [builder.index("app", None, [])])
    link = builder.v2 / "repositories/app/_manifests/tags/empty/current/link"
    os.makedirs(link.parent)
    link.write_bytes(b"")
    findings = [each for event in look(tmp_path).values() for each in event.findings]
    kinds = {each["verdict"] for each in findings}
    assert kinds == {"missing-child", "nested-index", "empty-link"}
    assert [each for each in findings if not each["remedy"] or not each["file"]] == []


@pytest.mark.parametrize("verdict", [each for each in Verdict if each is not Verdict.OK])
def test_every_verdict_has_a_remedy(verdict: Verdict) -> None:
    assert verdict.remedy


def test_what_many_tags_share_is_looked_at_once_and_hashed_once(tmp_path: Path) -> None:
    builder = StorageBuilder(tmp_path)
    for number in range(5):
        builder.image("app", f"v{number}", [b"shared", b"own %d" % number])
    storage = Counting(builder.v2)
    events: list[Event] = []

    summary = check(storage, digests=True, observe=events.append)

    hashed = [event.digest for event in events if isinstance(event, Hashed)]
    assert (set(storage.looked.values()), set(storage.hashed.values())) == ({1}, {1})
    assert (len(hashed), summary.hashed, summary.failed) == (11, 11, 0)


def test_a_registry_of_many_blobs_is_hashed_to_the_last(tmp_path: Path) -> None:
    """More than are handed to the threads at once."""
    builder = StorageBuilder(tmp_path)
    builder.image("app", "v1", [b"layer %d" % number for number in range(300)])
    builder.data(Digest.of(b"layer 299")).write_bytes(b"LAYER 299")
    assert look(tmp_path, digests=True)["app:v1"].verdict == "wrong-digest"


def test_the_summary_counts_tags_by_their_gravest_verdict(tmp_path: Path) -> None:
    builder = StorageBuilder(tmp_path)
    for number in range(3):
        builder.image("app", f"v{number}", [b"own %d" % number])
    builder.data(Digest.of(b"own 1")).unlink()
    found = check(Storage.open(str(tmp_path)))
    verdicts = Counter({"ok": 2, "missing-blob": 1})
    assert found == CheckSummary(images=3, verdicts=verdicts, failed=1)
