"""OUT on disk: names of files, the record, and what counts as an image."""

from pathlib import Path

import pytest

from exporter import dirlayout
from exporter.digest import Digest
from exporter.errors import UsageError
from exporter.manifest import Descriptor
from exporter.reference import ImageName
from exporter.verdict import ProblemError, Verdict
from tests.builders import image_config, image_manifest

MANIFEST = image_manifest(image_config([]), [])
DIGEST = Digest.of(MANIFEST)
NAME = ImageName.parse("team/app:v1")


def put(out: Path, name: str, content: bytes = MANIFEST) -> Path:
    """Write an image directory as skopeo would and return its path."""
    directory = out / name
    directory.mkdir(parents=True)
    (directory / "manifest.json").write_bytes(content)
    return directory


def refusal(out: Path) -> str:
    with pytest.raises(UsageError) as caught:
        dirlayout.prepare(str(out))
    return caught.value.message


# --- names of files


def test_files_are_called_as_skopeo_calls_them() -> None:
    digest = Digest.parse("sha512:" + "0" * 128)
    assert dirlayout.blob(digest) == "0" * 128
    assert dirlayout.child_manifest(digest) == "0" * 128 + ".manifest.json"


def test_an_image_lies_at_its_name() -> None:
    assert dirlayout.image_directory("/out", NAME) == "/out/team/app:v1"


def test_a_component_longer_than_a_file_name_can_be_is_refused() -> None:
    longest = ImageName.parse(f"team/{'a' * 127}:{'b' * 127}")
    assert dirlayout.image_directory("/out", longest) == f"/out/{longest}"
    with pytest.raises(ValueError, match="longer than a file name can be"):
        dirlayout.image_directory("/out", ImageName.parse(f"team/{'a' * 127}:{'b' * 128}"))


# --- making OUT ready


@pytest.mark.parametrize("there", [False, True], ids=["absent", "empty"])
def test_out_is_made_ready(tmp_path: Path, *, there: bool) -> None:
    out = tmp_path / "a/out"
    if there:
        out.mkdir(parents=True)
    dirlayout.prepare(str(out))
    assert [path.name for path in out.iterdir()] == [".skopeo-dir"]
    assert (out / ".skopeo-dir/version").read_bytes() == b"Directory Transport Version: 1.1\n"


def test_to_make_it_ready_again_changes_nothing(tmp_path: Path) -> None:
    dirlayout.prepare(str(tmp_path))
    before = (tmp_path / ".skopeo-dir/version").stat()
    dirlayout.prepare(str(tmp_path))
    assert (tmp_path / ".skopeo-dir/version").stat() == before


def test_an_out_that_holds_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(b"")
    assert refusal(tmp_path) == f"{tmp_path} holds something else"
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


def test_an_out_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"")
    assert refusal(tmp_path / "out") == f"{tmp_path}/out: Not a directory"
    assert refusal(tmp_path / "out/below") == f"{tmp_path}/out/below: Not a directory"


# --- which images there are


def test_images_are_the_directories_with_a_name_at_any_depth(tmp_path: Path) -> None:
    names = {"a:v1", "team/a:v1", "x/y/z:v1", f"a@{DIGEST}"}
    for name in names | {"plain/directory", "Not/A:Name", ".skopeo-dir/building/a:v1"}:
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "file:v1").write_bytes(b"")
    (tmp_path / "link:v1").symlink_to("a:v1")
    assert {str(name) for name in dirlayout.staged(str(tmp_path))} == names


def test_nothing_inside_an_image_is_an_image(tmp_path: Path) -> None:
    (tmp_path / "a:v1/b:v1").mkdir(parents=True)
    assert [str(name) for name in dirlayout.staged(str(tmp_path))] == ["a:v1"]


def test_an_image_that_skopeo_wrote_has_the_digest_of_its_bytes(tmp_path: Path) -> None:
    put(tmp_path, "b:v1")
    put(tmp_path, "a/c:v1")
    (tmp_path / "empty:v1").mkdir()
    expected = {ImageName.parse("a/c:v1"): DIGEST, ImageName.parse("b:v1"): DIGEST}
    assert list(dirlayout.images(str(tmp_path)).items()) == list(expected.items())


def test_the_record_outweighs_the_bytes(tmp_path: Path) -> None:
    put(tmp_path, str(NAME), MANIFEST + b"\n")
    (tmp_path / ".skopeo-dir").mkdir()
    dirlayout.write_record(str(tmp_path), {NAME: DIGEST})
    assert dirlayout.images(str(tmp_path)) == {NAME: DIGEST}


def test_an_image_of_the_record_that_is_not_there_is_still_an_image(tmp_path: Path) -> None:
    dirlayout.prepare(str(tmp_path))
    dirlayout.write_record(str(tmp_path), {NAME: DIGEST})
    assert dirlayout.images(str(tmp_path)) == {NAME: DIGEST}


def test_an_out_without_an_image_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no images"):
        dirlayout.images(str(tmp_path))


def test_an_out_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read: No such file or directory"):
        dirlayout.images(str(tmp_path / "nothing"))


def test_the_record_comes_back(tmp_path: Path) -> None:
    dirlayout.prepare(str(tmp_path))
    images = {NAME: DIGEST, ImageName.parse(f"a@{DIGEST}"): DIGEST}
    dirlayout.write_record(str(tmp_path), images)
    assert dirlayout.read_record(str(tmp_path)) == images


@pytest.mark.parametrize(
    "content",
    [
        *(b"{", b"[]", b"7", b"{}", b'{"name":"a:b"}', b'{"name":"../a:b","digest":"x"}', b"\xff"),
        b'{"name":"a:b","digest":"sha256:0"}',
        b'{"name":7,"digest":7}',
    ],
)
def test_a_damaged_record_is_refused(tmp_path: Path, content: bytes) -> None:
    dirlayout.prepare(str(tmp_path))
    (tmp_path / ".skopeo-dir/images.jsonl").write_bytes(content)
    with pytest.raises(UsageError, match=r"images\.jsonl is damaged"):
        dirlayout.read_record(str(tmp_path))


# --- what is in an image directory


def test_the_root_and_a_child_are_read_from_their_own_files(tmp_path: Path) -> None:
    directory, child = put(tmp_path, str(NAME)), image_manifest(image_config([b"x"]), [b"x"])
    (directory / f"{Digest.of(child).hex}.manifest.json").write_bytes(child)
    read = {
        digest: dirlayout.read_manifest(str(directory), digest, root=DIGEST)
        for digest in (DIGEST, Digest.of(child))
    }
    assert [found.size for found in read.values()] == [len(MANIFEST), len(child)]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, Verdict.MISSING_MANIFEST),
        (MANIFEST + b"\n", Verdict.WRONG_DIGEST),
        (b" " * (4 * 1024 * 1024 + 1), Verdict.INVALID_MANIFEST),
    ],
    ids=["missing", "changed", "too large"],
)
def test_a_manifest_that_is_not_right_has_a_verdict(
    tmp_path: Path, content: bytes | None, expected: Verdict
) -> None:
    if content is not None:
        (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(ProblemError) as caught:
        dirlayout.read_manifest(str(tmp_path), DIGEST, root=DIGEST)
    assert caught.value.problem.verdict == expected


def test_bytes_of_the_right_digest_may_still_be_no_manifest(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_bytes(b"{}")
    with pytest.raises(ProblemError) as caught:
        dirlayout.read_manifest(str(tmp_path), Digest.of(b"{}"), root=Digest.of(b"{}"))
    assert caught.value.problem.verdict == Verdict.INVALID_MANIFEST


def test_every_blob_that_is_missing_or_of_another_size_is_a_problem(tmp_path: Path) -> None:
    blobs = [Descriptor(Digest.of(content), len(content)) for content in (b"a", b"bb", b"ccc")]
    (tmp_path / blobs[0].digest.hex).write_bytes(b"a")
    (tmp_path / blobs[1].digest.hex).write_bytes(b"b")
    actual = [
        (problem.verdict, problem.path) for problem in dirlayout.blob_problems(str(tmp_path), blobs)
    ]
    assert actual == [
        (Verdict.WRONG_SIZE, f"{tmp_path}/{blobs[1].digest.hex}"),
        (Verdict.MISSING_BLOB, f"{tmp_path}/{blobs[2].digest.hex}"),
    ]
