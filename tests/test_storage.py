"""The source: found wherever it is, every tag seen, nothing outside of it believed."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from exporter import manifest
from exporter.digest import Digest
from exporter.errors import SourceError
from exporter.storage import Storage, TaggedImage, UnreadableTag, layout
from exporter.verdict import ProblemError, Verdict
from tests.builders import StorageBuilder

V2 = "docker/registry/v2"
DIGEST = Digest.of(b"x")


def tags(registry: StorageBuilder) -> list[TaggedImage | UnreadableTag]:
    return list(Storage(str(registry.v2)).tags())


def names(registry: StorageBuilder) -> list[str]:
    return [str(tag.name) for tag in tags(registry)]


def refusal(source: Path) -> SourceError:
    with pytest.raises(SourceError) as caught:
        Storage.open(str(source))
    return caught.value


def problem_of(read: Callable[[Digest], object], digest: Digest) -> tuple[Verdict, str]:
    with pytest.raises(ProblemError) as caught:
        read(digest)
    return caught.value.problem.verdict, caught.value.problem.path


# --- where the storage root is


@pytest.mark.parametrize(
    "given",
    [
        *(".", "docker", "docker/registry", V2, f"{V2}/repositories", f"{V2}/blobs/sha256"),
        *("..", f"{V2}/repositories/team/app/_manifests"),
    ],
)
def test_the_root_is_found_at_above_and_below(registry: StorageBuilder, given: str) -> None:
    registry.image("team/app", "v1", [b"layer"])
    assert Storage.open(str(registry.root / given)).root == str(registry.v2)


@pytest.mark.parametrize(
    "prefix",
    [
        *("registry", "var/lib/registry", "var/lib/docker/volumes/registry/_data"),
        "var/opt/gitlab/gitlab-rails/shared/registry",
    ],
)
def test_the_root_is_found_below_every_prefix_met_in_the_field(tmp_path: Path, prefix: str) -> None:
    builder = StorageBuilder(tmp_path / prefix)
    assert Storage.open(str(tmp_path)).root == str(builder.v2)


def test_a_root_need_not_be_called_v2(tmp_path: Path) -> None:
    for name in ("blobs", "repositories"):
        (tmp_path / "dump" / name).mkdir(parents=True)
    assert Storage.open(str(tmp_path)).root == str(tmp_path / "dump")


@pytest.mark.parametrize("alone", ["blobs", "repositories"])
def test_a_dump_without_empty_directories_is_a_root_by_its_name(tmp_path: Path, alone: str) -> None:
    (tmp_path / V2 / alone).mkdir(parents=True)
    assert Storage.open(str(tmp_path)).root == str(tmp_path / V2)


def test_the_root_is_found_through_a_symbolic_link(
    registry: StorageBuilder, tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to(registry.root)
    assert Storage.open(str(tmp_path / "link")).root == str(registry.v2)


def test_of_several_registries_none_is_chosen(tmp_path: Path) -> None:
    roots = [StorageBuilder(tmp_path / name).v2 for name in ("a", "b")]
    assert refusal(tmp_path).message == f"{tmp_path} holds 2 registries: {roots[0]}, {roots[1]}"


def test_an_oci_layout_is_called_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "blobs/sha256").mkdir(parents=True)
    (tmp_path / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    assert "is an OCI image layout" in refusal(tmp_path).message


def test_any_other_directory_is_no_registry(tmp_path: Path) -> None:
    assert "is not a registry's storage" in refusal(tmp_path).message


def test_what_is_not_there_does_not_exist(tmp_path: Path) -> None:
    (tmp_path / "dangling").symlink_to("nowhere")
    for name in ("nothing", "dangling"):
        assert refusal(tmp_path / name).message == f"{tmp_path / name} does not exist"


def test_an_archive_is_not_a_directory(tmp_path: Path) -> None:
    (tmp_path / "registry.tar").write_bytes(b"")
    assert refusal(tmp_path / "registry.tar").message.endswith("is not a directory")


# --- which tags there are


def test_names_of_one_to_four_components_and_nested_ones_are_all_found(
    registry: StorageBuilder,
) -> None:
    for name in ("a/b/c/d", "a", "b", "a/b/c", "a/b", "0/a"):
        registry.image(name, "v2", [b"layer"])
        registry.image(name, "v1", [b"layer"])
    expected = ["0/a", "a", "a/b", "a/b/c", "a/b/c/d", "b"]
    assert names(registry) == [f"{name}:{tag}" for name in expected for tag in ("v1", "v2")]


def test_the_content_of_the_link_file_is_the_digest(registry: StorageBuilder) -> None:
    digest = registry.image("app", "v1", [b"layer"])
    assert [tag.digest for tag in tags(registry) if isinstance(tag, TaggedImage)] == [digest]


def test_a_repository_without_tags_is_passed_over(registry: StorageBuilder) -> None:
    registry.image("untagged", None, [b"layer"])
    registry.layer("layers-only", b"layer")
    registry.image("app", "v1", [b"layer"])
    assert names(registry) == ["app:v1"]


def test_repositories_that_cannot_be_read_are_not_no_tags(registry: StorageBuilder) -> None:
    (registry.v2 / "repositories").rmdir()
    (registry.v2 / "repositories").write_bytes(b"")
    with pytest.raises(SourceError, match="repositories cannot be read: Not a directory"):
        tags(registry)


def damaged(registry: StorageBuilder, harm: Callable[[Path], object]) -> UnreadableTag:
    """Return what is said of a tag whose link file is harmed; another tag must stay whole."""
    registry.image("app", "good", [b"layer"])
    registry.image("app", "bad", [b"layer"])
    harm(registry.v2 / layout.tag_link("app", "bad"))
    bad, good = tags(registry)
    assert isinstance(bad, UnreadableTag)
    assert isinstance(good, TaggedImage)
    assert (bad.name, bad.problem.path) == ("app:bad", layout.tag_link("app", "bad"))
    return bad


def replace_by(make: Callable[[Path], object]) -> Callable[[Path], None]:
    def harm(path: Path) -> None:
        path.unlink()
        make(path)

    return harm


@pytest.mark.parametrize(
    ("harm", "expected"),
    [
        (lambda path: path.write_bytes(b""), Verdict.EMPTY_LINK),
        (lambda path: path.write_bytes(DIGEST.encode() + b"\n"), Verdict.INVALID_LINK),
        (lambda path: path.write_bytes(DIGEST.encode()[:-1]), Verdict.INVALID_LINK),
        (lambda path: path.write_bytes(DIGEST.encode() * 1000), Verdict.INVALID_LINK),
        (lambda path: path.write_bytes(b"sha256:" + b"../" * 20 + b"../x"), Verdict.INVALID_LINK),
        (lambda path: path.write_bytes(b"\xff\x00"), Verdict.INVALID_LINK),
        (Path.unlink, Verdict.INVALID_LINK),
        (lambda path: (path.unlink(), path.parent.rmdir()), Verdict.INVALID_LINK),
        (replace_by(Path.mkdir), Verdict.INVALID_LINK),
        (replace_by(os.mkfifo), Verdict.INVALID_LINK),
        (replace_by(lambda path: path.symlink_to("/etc/hostname")), Verdict.INVALID_LINK),
        (replace_by(lambda path: path.symlink_to("nowhere")), Verdict.INVALID_LINK),
    ],
    ids=[
        *("empty", "newline", "short", "long", "traversal", "bytes", "deleted", "no current"),
        *("directory", "FIFO", "symbolic link", "dangling"),
    ],
)
def test_a_damaged_link_file_is_named_and_harms_no_other_tag(
    registry: StorageBuilder, harm: Callable[[Path], object], expected: Verdict
) -> None:
    assert damaged(registry, harm).problem.verdict == expected


@pytest.mark.parametrize("looks", [1, 2])
def test_a_tag_that_lacks_its_link_for_a_moment_has_changed_and_is_not_damaged(
    registry: StorageBuilder, monkeypatch: pytest.MonkeyPatch, looks: int
) -> None:
    bad = damaged(registry, Path.unlink)
    link = registry.v2 / layout.tag_link("app", "bad")
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == looks:
            link.write_text(DIGEST)

    monkeypatch.setattr("time.sleep", sleep)
    (still,) = Storage(str(registry.v2)).still_unreadable([bad])
    assert (still.problem.verdict, len(waits)) == (Verdict.CHANGED_DURING_SCAN, looks)


def test_a_tag_without_a_link_stays_damaged(registry: StorageBuilder) -> None:
    bad = damaged(registry, Path.unlink)
    assert Storage(str(registry.v2)).still_unreadable([bad]) == [bad]


@pytest.mark.parametrize(
    ("repository", "tag"),
    [
        *(
            (b"app", b"\xff"),
            (b"app", b"v1\n"),
            (b"app", b"-v"),
            (b"app", b"\x1b[31m"),
            (b"app", b"a b"),
        ),
        *(
            (b"\xe9t\xe9", b"v1"),
            (b"Team", b"v1"),
            (b"-app", b"v1"),
            (b"a\tb", b"v1"),
            (b"", b"v1"),
        ),
        (b"app", "\u202evil".encode()),
    ],
)
def test_a_name_that_no_client_could_use_is_reported_and_can_be_printed(
    registry: StorageBuilder, repository: bytes, tag: bytes
) -> None:
    path = os.path.join(
        os.fsencode(registry.v2), b"repositories", repository, b"_manifests/tags", tag
    )
    os.makedirs(path)
    (found,) = tags(registry)
    assert isinstance(found, UnreadableTag)
    assert found.problem.verdict == Verdict.INVALID_NAME
    shown = f"{found.name}{found.problem.path}{found.problem.message}"
    assert shown.isprintable()
    assert shown.encode().decode() == shown


def test_a_symbolic_link_is_no_repository_and_is_not_followed(
    registry: StorageBuilder, tmp_path: Path
) -> None:
    StorageBuilder(tmp_path / "other").image("app", "v1", [b"layer"])
    outside = tmp_path / "other" / V2 / "repositories/app"
    (registry.v2 / "repositories/app").symlink_to(outside)
    (found,) = tags(registry)
    assert isinstance(found, UnreadableTag)
    assert (found.name, found.problem.verdict) == ("app", Verdict.INVALID_NAME)


def test_tags_that_are_no_directory_are_reported(registry: StorageBuilder) -> None:
    path = registry.v2 / layout.tags("app")
    path.parent.mkdir(parents=True)
    path.write_bytes(b"")
    (found,) = tags(registry)
    assert (found.name, isinstance(found, UnreadableTag)) == ("app", True)


def test_a_path_too_long_for_the_kernel_is_reported(registry: StorageBuilder) -> None:
    registry.image("app", "v1", [b"layer"])
    descriptor = os.open(registry.v2 / "repositories", os.O_RDONLY)
    for _ in range(20):  # 20 * 250 bytes are more than PATH_MAX
        os.mkdir("a" * 250, dir_fd=descriptor)
        below = os.open("a" * 250, os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = below
    os.close(descriptor)
    found = tags(registry)
    assert sorted(isinstance(tag, UnreadableTag) for tag in found) == [False, True]


@pytest.mark.parametrize("command", [["list"], ["list", "--names"], ["export"]])
def test_neither_layers_nor_uploads_are_ever_entered(
    registry: StorageBuilder, tmp_path: Path, command: list[str]
) -> None:
    registry.image("team/app", "v1", [b"layer"])
    (registry.v2 / "repositories/team/app/_uploads").mkdir()
    trace = tmp_path / "trace"
    strace = [
        "strace",
        "-f",
        "-o",
        str(trace),
        "-e",
        "trace=%file",
        sys.executable,
        "-m",
        "exporter",
    ]
    out = [str(tmp_path / "out")] if command == ["export"] else []
    subprocess.run([*strace, *command, str(registry.root), *out], check=True, capture_output=True)
    seen = trace.read_text()
    assert "repositories/team/app/_manifests/tags" in seen
    assert "/_layers" not in seen
    assert "/_uploads" not in seen


# --- manifests and blobs


def test_a_manifest_comes_back_by_its_digest(registry: StorageBuilder) -> None:
    digest = registry.image("app", "v1", [b"layer"])
    assert Storage(str(registry.v2)).manifest(digest) == manifest.parse(
        registry.data(digest).read_bytes()
    )


@pytest.mark.parametrize(
    ("harm", "expected"),
    [
        (Path.unlink, Verdict.MISSING_MANIFEST),
        (replace_by(Path.mkdir), Verdict.MISSING_MANIFEST),
        (replace_by(os.mkfifo), Verdict.MISSING_MANIFEST),
        (replace_by(lambda path: path.symlink_to("/etc/hostname")), Verdict.MISSING_MANIFEST),
        (lambda path: path.write_bytes(b""), Verdict.WRONG_DIGEST),
        (lambda path: path.write_bytes(path.read_bytes() + b"\n"), Verdict.WRONG_DIGEST),
        (lambda path: os.truncate(path, 4 * 1024 * 1024 + 1), Verdict.INVALID_MANIFEST),
    ],
    ids=["deleted", "directory", "FIFO", "symbolic link", "empty", "newline", "4 MiB and a byte"],
)
def test_a_damaged_manifest_has_its_verdict_and_path(
    registry: StorageBuilder, harm: Callable[[Path], object], expected: Verdict
) -> None:
    digest = registry.image("app", "v1", [b"layer"])
    harm(registry.data(digest))
    read = Storage(str(registry.v2)).manifest
    assert problem_of(read, digest) == (expected, layout.blob(digest))


def test_whole_bytes_that_are_no_manifest_are_invalid(registry: StorageBuilder) -> None:
    digest = registry.blob(b"{}")
    read = Storage(str(registry.v2)).manifest
    assert problem_of(read, digest) == (Verdict.INVALID_MANIFEST, layout.blob(digest))


def test_a_blob_has_the_size_and_inode_of_its_file(registry: StorageBuilder) -> None:
    digest = registry.blob(b"layer")
    inode = registry.data(digest).stat().st_ino
    path = str(registry.data(digest).relative_to(registry.v2))
    expected = (digest, path, len(b"layer"), inode)
    assert Storage(str(registry.v2)).blob(digest) == expected


@pytest.mark.parametrize(
    "harm",
    [
        *(Path.unlink, replace_by(Path.mkdir), replace_by(os.mkfifo)),
        replace_by(lambda path: path.symlink_to("/etc/hostname")),
        lambda path: (path.unlink(), path.parent.rmdir(), path.parent.write_bytes(b"")),
    ],
    ids=["deleted", "directory", "FIFO", "symbolic link", "file for directory"],
)
def test_what_is_no_regular_file_is_no_blob(
    registry: StorageBuilder, harm: Callable[[Path], object]
) -> None:
    digest = registry.blob(b"layer")
    harm(registry.data(digest))
    read = Storage(str(registry.v2)).blob
    assert problem_of(read, digest) == (Verdict.MISSING_BLOB, layout.blob(digest))
