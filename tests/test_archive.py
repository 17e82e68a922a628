"""A tarball is as good as the tree that it was made of, and damage to it costs what it hit."""

import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from exporter import dirlayout
from exporter.digest import Digest
from exporter.errors import SourceError
from exporter.events import Event, Exported, Failed
from exporter.export import export
from exporter.plan import Selection
from exporter.storage.archive import Archive
from exporter.storage.archive_tree import ArchiveTree
from exporter.unpack import unpacked
from exporter.verdict import ProblemError, Verdict
from tests.archives import BLOCK, END, archive, files, header, member, skopeo_dir
from tests.builders import FIXTURES, StorageBuilder, unpack_fixture
from tests.registry import serve

FOLDERS = {
    "the root": ("", "."),
    "docker": ("", "docker"),
    "inside docker": ("docker", "registry"),
    "inside docker/registry": ("docker/registry", "v2"),
    "inside v2": ("docker/registry/v2", "."),
    "inside v2, without dot": ("docker/registry/v2", "blobs repositories"),
    "/var/lib/registry": ("../../..", "var/lib/registry"),
    "/data/registry": ("../../..", "data/registry"),
    "a repository's name as folder": ("../../..", "srv/repositories"),
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack_fixture(tmp_path_factory.mktemp("source") / "registry")


@pytest.fixture(scope="module")
def oracle(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return what an export of the tree gives."""
    out = tmp_path_factory.mktemp("oracle") / "out"
    assert skopeo_dir("export", source, out).code == 0
    return out


def tar(target: Path, directory: Path, *arguments: str) -> Path:
    subprocess.run(["tar", "-cpf", target, "-C", directory, *arguments], check=True)
    return target


def differences(first: Path, second: Path) -> str:
    command = ["diff", "-r", "-x", ".skopeo-dir", str(first), str(second)]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


@pytest.mark.parametrize("form", ["gnu", "pax", "ustar", "posix --xattrs", "oldgnu"])
def test_every_tar_format_is_exported_as_the_tree_is(
    form: str, source: Path, oracle: Path, tmp_path: Path
) -> None:
    made = tar(tmp_path / "x", source, *f"--format={form}".split(), ".")
    assert skopeo_dir("export", made, tmp_path / "out").code == 0
    assert differences(oracle, tmp_path / "out") == ""


@pytest.mark.parametrize("compression", ["gzip", "xz", "zstd", "bzip2", "zstd --long=27", "xz -0"])
@pytest.mark.parametrize("way", ["file", "stdin"])
def test_every_compression_is_exported_as_the_tree_is(
    compression: str, way: str, source: Path, oracle: Path, tmp_path: Path
) -> None:
    made = tar(tmp_path / "x", source, f"--use-compress-program={compression}", ".")
    run = skopeo_dir("export", "-" if way == "stdin" else made, tmp_path / "out", stdin=made)
    assert run.code == 0
    assert differences(oracle, tmp_path / "out") == ""


def test_a_plain_stream_is_exported_as_the_tree_is(
    source: Path, oracle: Path, tmp_path: Path
) -> None:
    made = tar(tmp_path / "x", source, ".")
    assert skopeo_dir("export", "-", tmp_path / "out", stdin=made).code == 0
    assert differences(oracle, tmp_path / "out") == ""


@pytest.mark.parametrize("folder", FOLDERS.values(), ids=FOLDERS)
def test_an_archive_of_any_folder_is_exported_as_the_tree_is(
    folder: tuple[str, str], source: Path, oracle: Path, tmp_path: Path
) -> None:
    directory, names = folder
    start = source / directory
    if directory.startswith(".."):
        start = tmp_path / "host"
        (start / names).parent.mkdir(parents=True)
        shutil.copytree(source, start / names)
    made = tar(tmp_path / "x", start, *names.split())
    assert skopeo_dir("export", made, tmp_path / "out").code == 0
    assert differences(oracle, tmp_path / "out") == ""


def test_members_in_any_order_and_without_directories_are_the_same(
    source: Path, oracle: Path, tmp_path: Path
) -> None:
    names = sorted(files(source), key=lambda name: name[::-1])
    (tmp_path / "names").write_text("\n".join(names))
    made = tar(tmp_path / "x", source, "--no-recursion", "-T", str(tmp_path / "names"))
    assert skopeo_dir("export", made, tmp_path / "out").code == 0
    assert differences(oracle, tmp_path / "out") == ""


def test_hard_linked_members_are_followed(registry: StorageBuilder, tmp_path: Path) -> None:
    layer = registry.image("app", "v1", [b"layer"]) and Digest.of(b"layer")
    for repository in ("b", "c"):
        registry.manifest(
            repository, "v1", registry.data(registry.image("app", "v2", [])).read_bytes()
        )
    link = "docker/registry/v2/repositories/{}/_manifests/tags/v1/current/link"
    (registry.root / link.format("c")).unlink()
    os.link(registry.root / link.format("b"), registry.root / link.format("c"))
    (registry.root / "a").mkdir()
    os.link(registry.data(layer), registry.root / "a/old-export")
    names = ["a", *(str(p.relative_to(registry.root)) for p in sorted(registry.v2.iterdir()))]
    made = tar(tmp_path / "x", registry.root, *names)
    assert made.read_bytes().count(b"layer") > 0

    run = skopeo_dir("export", made, tmp_path / "out")

    assert skopeo_dir("export", registry.root, tmp_path / "oracle").code == 0
    assert (run.code, differences(tmp_path / "oracle", tmp_path / "out")) == (0, "")


@pytest.mark.parametrize("form", ["plain", "xz", "stdin"])
def test_the_list_of_an_archive_is_that_of_its_tree(
    form: str, source: Path, tmp_path: Path
) -> None:
    made = tar(tmp_path / "x", source, *(["-J"] if form == "xz" else []), ".")
    name = "-" if form == "stdin" else made
    listed = skopeo_dir("list", "--json", name, stdin=made)
    assert listed[:2] == skopeo_dir("list", "--json", source)[:2]


@pytest.mark.parametrize("form", ["plain", "gzip", "stdin"])
@pytest.mark.parametrize("options", [[], ["--digests"], ["--untagged"]], ids=str)
def test_the_check_of_an_archive_is_that_of_its_tree(
    form: str, options: list[str], registry: StorageBuilder, tmp_path: Path
) -> None:
    registry.index("app", "all", [registry.image("app", None, [b"a"])])
    registry.image("app", "gone", [b"gone"])
    registry.data(Digest.of(b"gone")).unlink()
    registry.image("app", None, [b"untagged"])
    made = tar(tmp_path / "x", registry.root, *(["-z"] if form == "gzip" else []), ".")
    name = "-" if form == "stdin" else made
    checked = skopeo_dir("check", "--json", *options, name, stdin=made)
    assert checked[:2] == skopeo_dir("check", "--json", *options, registry.root)[:2]


@pytest.mark.parametrize("command", [["check"], ["check", "--digests"]], ids=" ".join)
def test_a_check_of_an_archive_finds_a_flipped_byte_as_far_as_it_was_asked_to(
    command: list[str], registry: StorageBuilder, tmp_path: Path
) -> None:
    registry.image("app", "v1", [b"one", b"two"])
    registry.image("app", "v2", [b"three"])
    registry.data(Digest.of(b"two")).write_bytes(b"2wo")
    run = skopeo_dir(*command, "--json", tar(tmp_path / "x", registry.root, "."))
    lines = [orjson.loads(line) for line in run.stdout.splitlines()]
    found = {line["name"]: line["verdict"] for line in lines if line["message_type"] == "checked"}
    deep = "--digests" in command
    assert found == {"app:v1": "wrong-digest" if deep else "ok", "app:v2": "ok"}
    assert run.code == (3 if deep else 0)


@pytest.mark.parametrize("options", [[], ["-z"]], ids=["plain", "gzip"])
def test_untagged_manifests_and_sha512_blobs_are_exported_as_from_the_tree(
    options: list[str], registry: StorageBuilder, tmp_path: Path
) -> None:
    registry.image("app", None, [b"untagged"])
    layer = b"known as sha512"
    stored, asked = Digest.of(layer), Digest.of(layer, algorithm="sha512")
    digest = registry.image("app", "tmp", [layer])
    raw = registry.data(digest).read_bytes().replace(stored.encode(), asked.encode())
    registry.manifest("app", "v512", raw)
    registry.link("app", f"_layers/sha512/{asked.hex}", stored)
    shutil.rmtree(registry.v2 / "repositories/app/_manifests/tags/tmp")
    made = tar(tmp_path / "x", registry.root, *options, ".")
    runs = [
        skopeo_dir("export", "--untagged", source, tmp_path / out)
        for source, out in ((registry.root, "oracle"), (made, "out"))
    ]
    assert [run.code for run in runs] == [0, 0], runs
    assert differences(tmp_path / "oracle", tmp_path / "out") == ""
    assert len(list((tmp_path / "out").glob("app*"))) == 3


def test_the_work_directory_keeps_nothing_of_an_archive(source: Path, tmp_path: Path) -> None:
    made = tar(tmp_path / "x", source, ".")
    assert skopeo_dir("export", made, tmp_path / "out").code == 0
    left = {path.name for path in (tmp_path / "out/.skopeo-dir").rglob("*")}
    assert left == {"building", "images.jsonl", "lock", "made.json", "relay", "version"}


@pytest.mark.parametrize("options", [[], ["-J"]], ids=["plain", "xz"])
def test_a_second_export_of_an_archive_changes_nothing(
    options: list[str], source: Path, tmp_path: Path
) -> None:
    made = tar(tmp_path / "x", source, *options, ".")
    first = skopeo_dir("export", made, tmp_path / "out")
    inodes = [path.stat().st_ino for path in sorted((tmp_path / "out").rglob("*"))]
    second = skopeo_dir("export", "--json", made, tmp_path / "out")
    lines = [orjson.loads(line) for line in second.stdout.splitlines()]
    assert (first.code, second.code) == (0, 0)
    assert {line.get("status") for line in lines if "status" in line} == {"unchanged"}
    written = {line["digest"][7:] for line in lines if line["message_type"] == "unpacked"}
    assert written & {path.name for path in (tmp_path / "out").rglob("*")} == set()
    now = [path.stat().st_ino for path in sorted((tmp_path / "out").rglob("*"))]
    assert len(set(inodes) ^ set(now)) <= 2  # images.jsonl is written anew


@pytest.mark.parametrize("options", [[], ["-z"]], ids=["plain", "gzip"])
def test_a_selection_writes_only_the_blobs_that_it_needs(
    options: list[str], registry: StorageBuilder, tmp_path: Path
) -> None:
    wanted = registry.image("app", "v1", [b"shared", b"own"])
    registry.image("app", "v2", [b"shared", b"not wanted"])
    made = tar(tmp_path / "x", registry.root, *options, ".")
    run = skopeo_dir("export", "--json", "--include", "app:v1", made, tmp_path / "out")
    lines = [orjson.loads(line) for line in run.stdout.splitlines()]
    written = {line["digest"] for line in lines if line["message_type"] == "unpacked"}
    layers = {str(Digest.of(each)) for each in (b"shared", b"own", b"not wanted")}
    assert run.code == 0
    assert written & layers == layers - {str(Digest.of(b"not wanted"))}
    assert str(wanted) in written


def test_an_interrupted_run_goes_on_without_writing_a_blob_again(
    registry: StorageBuilder, tmp_path: Path
) -> None:
    registry.image("app", "v1", [bytes([n]) * 300_000 for n in range(20)])
    made, out = tar(tmp_path / "x", registry.root, "."), tmp_path / "out"
    blobs = out / ".skopeo-dir/unpacked/docker/registry/v2/blobs"
    content = made.read_bytes()
    process = subprocess.Popen(
        [sys.executable, "-m", "exporter", "export", "-", out], stdin=subprocess.PIPE
    )
    assert process.stdin is not None
    process.stdin.write(content[: len(content) // 2])
    process.stdin.flush()
    deadline = time.monotonic() + 20
    while len(list(blobs.rglob("data"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.wait()
    process.stdin.close()
    before = {path.stat().st_ino for path in blobs.rglob("data")}

    run = skopeo_dir("export", made, out)

    after = {path.stat().st_ino for path in (out / "app:v1").iterdir()}
    assert run.code == 0
    assert len(before) >= 3
    assert before <= after


@pytest.mark.parametrize(
    ("limit", "options"),
    [("size=1m", []), ("nr_inodes=50", []), ("size=1m", ["-z"])],
    ids=["bytes", "inodes", "bytes, compressed"],
)
def test_what_does_not_fit_is_refused_before_it_is_written(
    limit: str, options: list[str], registry: StorageBuilder, tmp_path: Path
) -> None:
    registry.image("app", "v1", [b"\x1f\x8b" + os.urandom(200_000) for _ in range(10)])
    made, out = tar(tmp_path / "x", registry.root, *options, "."), tmp_path / "out"
    out.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", limit, "tmpfs", out], check=True)
    try:
        run = skopeo_dir("export", made, out)
        written = [path for path in out.rglob("data") if path.stat().st_size > 100_000]
    finally:
        subprocess.run(["umount", out], check=True)
    assert (run.code, written) == (7, [])
    assert "needs" in run.stderr


def test_two_registries_in_an_archive_are_named(source: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        shutil.copytree(source, tmp_path / "host" / name)
    run = skopeo_dir("list", tar(tmp_path / "x", tmp_path / "host", "one", "two"))
    assert run.code == 3
    assert "several registries" in run.stderr
    assert "one/docker/registry/v2" in run.stderr
    assert "two/docker/registry/v2" in run.stderr


@pytest.mark.parametrize("form", ["gnu", "posix"])
def test_a_sparse_blob_is_refused_with_what_to_do(
    form: str, registry: StorageBuilder, tmp_path: Path
) -> None:
    registry.image("app", "v1", [b"x" + bytes(1 << 20) + b"y"])
    registry.image("app", "v2", [b"z"])
    path = registry.data(Digest.of(b"x" + bytes(1 << 20) + b"y"))
    subprocess.run(["fallocate", "--dig-holes", path], check=True)
    made = tar(tmp_path / "x", registry.root, f"--format={form}", "--sparse", ".")
    run = skopeo_dir("export", made, tmp_path / "out")
    assert run.code == 3
    assert "--sparse" in run.stderr
    assert [path.name for path in (tmp_path / "out").iterdir() if ":" in path.name] == ["app:v2"]


def test_stdin_cannot_be_the_archive_and_the_list_of_names(tmp_path: Path) -> None:
    assert skopeo_dir("export", "-", tmp_path / "out", "--from-file", "-").code == 2


def test_a_migration_of_a_tarball_needs_nothing_else(tmp_path: Path) -> None:
    made = shutil.copy(FIXTURES / "registry.tar.xz", tmp_path)
    with serve(tmp_path / "destination") as destination:
        run = skopeo_dir("migrate", made, destination.host, "--dest-tls-verify=false")
    assert run.code == 0, run.stderr
    rows = [
        {key: orjson.loads(line)[key] for key in ("name", "digest")}
        for line in skopeo_dir("list", "--json", tmp_path / "destination").stdout.splitlines()
    ]
    expected = [
        orjson.loads(line) for line in (FIXTURES / "registry.jsonl").read_bytes().splitlines()
    ]
    assert rows == [
        {"name": f"{row['repository']}:{row['tag']}", "digest": row["digest"]} for row in expected
    ]
    assert (tmp_path / "registry.tar.xz.skopeo-dir").is_dir()


def test_a_scan_of_digests_finds_the_blob_that_is_damaged_and_writes_none(
    registry: StorageBuilder, tmp_path: Path
) -> None:
    registry.image("app", "v1", [b"one", b"two"])
    registry.data(Digest.of(b"two")).write_bytes(b"2wo")
    tree = ArchiveTree(Archive(str(tar(tmp_path / "x", registry.root, "."))), str(tmp_path / "t"))
    tree.scan(digests=True)
    storage = tree.storage(sizes=True)
    assert storage.blob(Digest.of(b"one")).size == 3
    with pytest.raises(ProblemError) as caught:
        storage.blob(Digest.of(b"two"))
    assert caught.value.problem.verdict == Verdict.WRONG_DIGEST
    assert not os.path.exists(storage.path(Digest.of(b"one")))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_wait_for_a_stream(
    number: signal.Signals, source: Path, tmp_path: Path
) -> None:
    content = tar(tmp_path / "x", source, ".").read_bytes()
    process = subprocess.Popen(
        [sys.executable, "-m", "exporter", "export", "-", tmp_path / "out"],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stderr is not None
    process.stdin.write(content[:100_000])
    process.stdin.flush()
    first = process.stderr.readline()
    process.send_signal(number)
    try:
        code = process.wait(60)
    finally:
        process.kill()
        process.stdin.close()
        with process.stderr as stderr:
            said = first + stderr.read()
    assert (code, b"Traceback" in said, b"Fatal" in said) == (128 + number, False, False)


class Small:
    """Three images in an archive, and what each consists of."""

    def __init__(self, root: Path) -> None:
        builder = StorageBuilder(root)
        shared = b"shared by two"
        tags = {
            "app:v1": (builder.image("app", "v1", [shared, b"one"]), [shared, b"one"]),
            "app:v2": (builder.image("app", "v2", [shared, b"two"]), [shared, b"two"]),
            "team/app:v1": (builder.image("team/app", "v1", [b"z" * 2000]), [b"z" * 2000]),
        }
        self.content = archive(files(root)) + END
        self.needs: dict[str, set[str]] = {}
        for name, (digest, layers) in tags.items():
            config = Digest.parse(
                orjson.loads(builder.data(digest).read_bytes())["config"]["digest"]
            )
            blobs = {digest, config, *(Digest.of(layer) for layer in layers)}
            repository, tag = name.split(":")
            self.needs[name] = {str(builder.data(blob).relative_to(root)) for blob in blobs} | {
                f"docker/registry/v2/repositories/{repository}/_manifests/tags/{tag}/current/link"
            }

    def whole(self, names: set[str]) -> set[str]:
        """Return the images of which every file is among `names`."""
        return {image for image, needs in self.needs.items() if needs <= names}

    def members(self, root: Path) -> Iterator[tuple[str, int, int]]:
        """Yield name, first byte and end of the content of each member, by Python's own reader."""
        (root / "whole.tar").write_bytes(self.content)
        with tarfile.open(root / "whole.tar") as opened:
            for each in opened:
                yield each.name, each.offset, each.offset_data + each.size


@pytest.fixture
def small(tmp_path: Path) -> Small:
    return Small(tmp_path / "small")


def exported(content: bytes, directory: Path) -> tuple[set[str], dict[str, None]]:
    """Return the images that are made of an archive, and what is said to be wrong with it."""
    (directory / "x.tar").write_bytes(content)
    out = directory / "out"
    dirlayout.prepare(str(out))
    events: list[Event] = []
    try:
        source = Archive(str(directory / "x.tar"))
    except SourceError as error:
        return set(), {error.message: None}
    try:
        with unpacked(source, str(out), selection=Selection()) as storage:
            export(storage, str(out), observe=events.append)
    except SourceError as error:
        return set(), source.damage or {error.message: None}
    finally:
        shutil.rmtree(out)
    assert source.damage or not any(isinstance(event, Failed) for event in events)
    return {event.name for event in events if isinstance(event, Exported)}, source.damage


def test_an_archive_cut_at_any_block_gives_what_is_whole_and_no_success(
    small: Small, tmp_path: Path
) -> None:
    members = list(small.members(tmp_path))
    for cut in range(0, len(small.content) - BLOCK, BLOCK):
        expected = small.whole({name for name, _, end in members if end <= cut})
        images, damage = exported(small.content[:cut], tmp_path)
        assert (cut, images) == (cut, expected)
        assert damage, cut


def test_an_archive_cut_within_its_last_block_is_no_success(small: Small, tmp_path: Path) -> None:
    _, damage = exported(small.content[:-1], tmp_path)
    assert damage


def test_any_damaged_header_costs_its_own_member_alone(small: Small, tmp_path: Path) -> None:
    members = list(small.members(tmp_path))
    for name, start, _ in members:
        content = bytearray(small.content)
        content[start + 30] ^= 1
        images, damage = exported(bytes(content), tmp_path)
        assert (name, images) == (name, small.whole({other for other, _, _ in members} - {name}))
        assert damage, name


def test_any_flipped_byte_of_a_blob_costs_the_images_that_have_it(
    small: Small, tmp_path: Path
) -> None:
    members = list(small.members(tmp_path))
    for name, _, end in members:
        if not name.endswith("/data"):
            continue
        content = bytearray(small.content)
        content[end - 1] ^= 1
        images, damage = exported(bytes(content), tmp_path)
        assert (name, images) == (name, small.whole({other for other, _, _ in members} - {name}))
        assert damage, name


def test_a_layer_that_is_an_archive_hides_nothing_when_its_header_is_damaged(
    registry: StorageBuilder, tmp_path: Path
) -> None:
    """A member in it says that it has a terabyte: all that follows, if that was believed."""
    registry.image("app", "v1", [b"mine"])
    layer = header("in/the/layer", size_field=b"%011o\0" % (1 << 32)) + END
    damaged = bytearray(header(f"docker/registry/v2/blobs/sha256/aa/{'a' * 64}/data", len(layer)))
    damaged[0] ^= 1
    rest = archive(files(registry.root)) + END
    images, damage = exported(bytes(damaged) + layer + rest, tmp_path)
    assert images == {"app:v1"}
    assert damage


def test_a_tag_is_not_moved_by_a_layer_that_is_an_archive(
    registry: StorageBuilder, tmp_path: Path
) -> None:
    """The layer's header is damaged, so what is in it looks like members of the archive."""
    registry.image("app", "v1", [b"mine"])
    evil = registry.image("evil", "v1", [b"evil"])
    link = "docker/registry/v2/repositories/app/_manifests/tags/v1/current/link"
    layer = member(link, evil.encode()) + END
    damaged = bytearray(header(f"docker/registry/v2/blobs/sha256/aa/{'a' * 64}/data", len(layer)))
    damaged[0] ^= 1
    images, damage = exported(
        bytes(damaged) + layer + archive(files(registry.root)) + END, tmp_path
    )
    assert images == {"evil:v1"}
    assert f"{list(damage)}".count("two link files") == 1
