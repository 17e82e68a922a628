"""The command line of `list` and `export`: what is printed where, and how it ends."""

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import orjson
import pytest

from exporter import __version__, dirlayout, files
from exporter.cli.console import human_size
from exporter.digest import Digest
from tests.builders import StorageBuilder
from tests.snapshot import snapshot

EXPORTER = [sys.executable, "-m", "exporter"]
NOBODY = 65534
HARD_LINKS = "export: by hard links (--link-mode auto)\n"


@pytest.fixture(autouse=True, scope="module")
def a_way_in_for_nobody() -> None:
    """Let other users through to this checkout and its interpreter, wherever they are."""
    for path in (Path(__file__).resolve(), Path(sys.executable), Path(sys.executable).resolve()):
        for parent in path.parents:
            if not parent.stat().st_mode & 0o001:
                parent.chmod(parent.stat().st_mode | 0o011)


class Run(NamedTuple):
    """How a command ended."""

    code: int
    stdout: str
    stderr: str


def run(*command: str | Path, stdin: str = "", **environment: str) -> Run:
    done = subprocess.run(
        list(map(str, command)),
        input=stdin,
        capture_output=True,
        text=True,
        env=os.environ | environment,
        check=False,
    )
    assert "Traceback" not in done.stderr
    return Run(done.returncode, done.stdout, done.stderr)


def skopeo_dir(*arguments: str | Path, stdin: str = "", **environment: str) -> Run:
    return run(*EXPORTER, *arguments, stdin=stdin, **environment)


def messages(run: Run) -> list[dict[str, object]]:
    return [orjson.loads(line) for line in run.stdout.splitlines()]


@pytest.fixture
def filled(registry: StorageBuilder) -> StorageBuilder:
    """A registry of two repositories with two tags each."""
    for repository in ("app", "team/app"):
        for tag in ("v1", "v2"):
            registry.image(repository, tag, [b"base", f"{repository}:{tag}".encode()])
    return registry


# --- the command itself


def test_version_is_one_line() -> None:
    assert skopeo_dir("--version") == Run(0, f"skopeo-dir {__version__}\n", "")


@pytest.mark.parametrize("arguments", [["nonsense"], ["list"], ["list", "--nonsense", "."]])
def test_a_wrong_command_line_is_usage(arguments: list[str]) -> None:
    result = skopeo_dir(*arguments)
    assert (result.code, result.stdout) == (2, "")


# --- bad input: one sentence, its exit code


def oci_layout(path: Path) -> Path:
    path.mkdir()
    (path / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    return path


def empty_registry(path: Path) -> Path:
    return StorageBuilder(path).root


def empty_directory(path: Path) -> Path:
    path.mkdir()
    return path


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda path: path, "{path} does not exist"),
        (empty_directory, "{path} is not a registry's storage: no docker/registry/v2 in it"),
        (oci_layout, "{path} is an OCI image layout, not a registry's storage"),
        (
            empty_registry,
            "the registry in {path}/docker/registry/v2 is empty: it has no repositories",
        ),
    ],
    ids=["nonexistent", "no registry", "OCI layout", "empty registry"],
)
@pytest.mark.parametrize("command", ["list", "export"])
def test_a_source_that_is_no_registry_is_one_sentence_and_exit_code_3(
    tmp_path: Path, command: str, make: Callable[[Path], Path], sentence: str
) -> None:
    path = make(tmp_path / "source")
    result = skopeo_dir(command, path, *([tmp_path / "out"] if command == "export" else []))
    assert (result.code, result.stdout) == (3, "")
    assert result.stderr.splitlines()[0] == f"error: {sentence.format(path=path)}"
    assert re.fullmatch(r"error: .*\n(hint: .*\n)?", result.stderr)


@pytest.mark.parametrize(
    ("selection", "sentence"),
    [
        ("--include=nothing/*", "no image matches the selection"),
        ("--include=app:[z-a]", "a glob cannot be used: bad character range z-a"),
        ("--exclude=**", "no image matches the selection"),
        ("--from-file=/nonexistent", "/nonexistent cannot be read: No such file or directory"),
        ("--from-file=/", "/ cannot be read: Is a directory"),
        ("--from-file=/dev/null", "/dev/null lists no image"),
    ],
)
@pytest.mark.parametrize("command", ["list", "export"])
def test_a_selection_that_cannot_be_is_one_sentence_and_exit_code_2(
    filled: StorageBuilder, tmp_path: Path, command: str, selection: str, sentence: str
) -> None:
    out = [tmp_path / "out"] if command == "export" else []
    result = skopeo_dir(command, filled.root, *out, selection)
    assert result == Run(2, "", f"error: {sentence}\n")


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        ("app:v1\nnone:v1\n", "there is no image none:v1"),
        ("a:1\nb:1\nc:1\n", "there is no image a:1 and 2 more"),
        ("# only a comment\n\n", "- lists no image"),
    ],
)
def test_a_list_with_a_wrong_name_is_one_sentence_and_exit_code_2(
    filled: StorageBuilder, lines: str, sentence: str
) -> None:
    result = skopeo_dir("list", filled.root, "--from-file", "-", stdin=lines)
    assert result == Run(2, "", f"error: {sentence}\n")


def test_a_list_that_is_not_text_is_one_sentence(filled: StorageBuilder, tmp_path: Path) -> None:
    (tmp_path / "list").write_bytes(b"\xff\xfe")
    result = skopeo_dir("list", filled.root, "--from-file", tmp_path / "list")
    assert result == Run(2, "", f"error: {tmp_path}/list cannot be read: it is not text\n")


def test_a_source_whose_name_is_not_utf_8_is_one_sentence() -> None:
    result = skopeo_dir("list", os.fsdecode(b"/nonexistent/\xff"))
    assert (result.code, result.stderr) == (3, "error: /nonexistent/\\udcff does not exist\n")


def something_else(_filled: StorageBuilder, out: Path) -> Path:
    out.mkdir()
    (out / "precious").write_bytes(b"")
    return out


def a_file(_filled: StorageBuilder, out: Path) -> Path:
    out.write_bytes(b"")
    return out


def inside(filled: StorageBuilder, _out: Path) -> Path:
    return filled.v2 / "out"


def inside_by_a_link(filled: StorageBuilder, out: Path) -> Path:
    out.symlink_to(filled.v2 / "repositories")
    return out


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (something_else, "{out} holds something else"),
        (a_file, "{out}: Not a directory"),
        (inside, "{out} is inside the registry's storage, which is never written to"),
        (inside_by_a_link, "{out} is inside the registry's storage, which is never written to"),
    ],
)
def test_an_out_that_is_not_fit_is_one_sentence_and_nothing_is_touched(
    filled: StorageBuilder,
    tmp_path: Path,
    make: Callable[[StorageBuilder, Path], Path],
    sentence: str,
) -> None:
    out = make(filled, tmp_path / "out")
    before = snapshot(tmp_path)
    result = skopeo_dir("export", filled.root, out)
    assert (result.code, result.stdout) == (2, "")
    assert result.stderr.splitlines()[0] == f"error: {sentence.format(out=out)}"
    assert snapshot(tmp_path) == before


def test_an_out_that_another_run_writes_to_is_exit_code_6(
    filled: StorageBuilder, tmp_path: Path
) -> None:
    out = str(tmp_path / "out")
    dirlayout.prepare(out)
    with files.locked(dirlayout.lock_file(out)):
        result = skopeo_dir("export", filled.root, out)
    assert (result.code, result.stdout) == (6, "")
    assert f"is in use by process {os.getpid()} on " in result.stderr


# --- where the kernel refuses to link: real file systems, in a mount namespace of their own


def mounted(mount: str, *arguments: str | Path) -> Run:
    return run(
        "unshare", "--mount", "sh", "-ec", f'{mount}; exec "$@"', "sh", *EXPORTER, *arguments
    )


def test_another_file_system_is_refused_before_anything_is_built(
    filled: StorageBuilder, tmp_path: Path
) -> None:
    (tmp_path / "mnt").mkdir()
    before = snapshot(filled.root)
    mount = f"mount -t tmpfs none {tmp_path}/mnt"
    result = mounted(mount, "export", filled.root, tmp_path / "mnt/out")
    assert (result.code, result.stdout) == (2, "")
    assert (
        "they are on different file systems or mounts (or subvolumes, or projects of a quota)"
        in result.stderr
    )
    assert snapshot(filled.root) == before


def test_another_mount_of_the_same_file_system_is_refused_too(
    filled: StorageBuilder, tmp_path: Path
) -> None:
    for name in ("disk", "mnt"):
        (tmp_path / name).mkdir()
    mount = f"mount --bind {tmp_path}/disk {tmp_path}/mnt"
    result = mounted(mount, "export", filled.root, tmp_path / "mnt/out")
    assert (result.code, result.stdout) == (2, "")
    assert (
        "they are on different file systems or mounts (or subvolumes, or projects of a quota)"
        in result.stderr
    )
    assert list((tmp_path / "disk/out/.skopeo-dir/building").iterdir()) == []


def injected(fault: str, *arguments: str | Path) -> Run:
    """Let strace make system calls fail; which of link, linkat is used depends on the machine."""
    return run("strace", "-f", "-o", "/dev/null", "-e", f"inject={fault}", *EXPORTER, *arguments)


@pytest.mark.parametrize("call", ["link", "mkdir", "rename"])
@pytest.mark.parametrize("error", ["ENOSPC", "EDQUOT"])
def test_a_full_file_system_is_exit_code_7_and_the_next_run_finishes(
    filled: StorageBuilder, tmp_path: Path, call: str, error: str
) -> None:
    command = ("export", filled.root, tmp_path / "out")
    result = injected(f"/^{call}:error={error}:when=3+", *command)
    assert (result.code, result.stdout) == (7, "")
    assert re.search(
        r"^error: .*(no space|quota).*\nhint: free some and run", result.stderr, re.MULTILINE
    )
    assert skopeo_dir(*command).stdout.startswith("exported 4 images (")


def test_a_file_with_too_many_links_fails_its_image_if_only_hard_links_will_do(
    filled: StorageBuilder, tmp_path: Path
) -> None:
    fault = "/^link:error=EMLINK:when=3"
    strict = ("--json", "--link-mode", "hardlink")
    result = injected(fault, "export", filled.root, tmp_path / "out", *strict)
    failed = [message for message in messages(result) if message["message_type"] == "failed"]
    assert [(message["name"], message["error"]) for message in failed] == [("app:v1", "link")]
    assert result.code == 1


def test_a_file_with_too_many_links_is_copied_once_and_the_copy_is_linked(
    filled: StorageBuilder, tmp_path: Path
) -> None:
    fault = "/^link:error=EMLINK:when=3"
    result = injected(fault, "export", filled.root, tmp_path / "out", "--json")
    summary = messages(result)[-1]
    assert (result.code, summary["images"], summary["links"], summary["copied"]) == (0, 4, 20, 1)


# All that is imported must be imported as root: nobody cannot enter root's Python.
AS_NOBODY = f"""
import contextlib, io, os
import exporter.cli.app, exporter.cli.selection
import exporter.dirlayout, exporter.export, exporter.storage
with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
    exporter.cli.app.command_line()(["export", "--help"])
os.setgroups([])
os.setresgid({NOBODY}, {NOBODY}, {NOBODY})
os.setresuid({NOBODY}, {NOBODY}, {NOBODY})
exporter.cli.app.main()
"""


@pytest.fixture
def public() -> Iterator[Path]:
    """A directory that any user may enter and write to; pytest's own are for one user."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o777)
        yield Path(name)


def as_nobody(*arguments: str | Path) -> Run:
    """Run as a user without rights."""
    return run(sys.executable, "-c", AS_NOBODY, *arguments)


def test_a_user_who_may_not_link_is_told_so(public: Path) -> None:
    assert Path("/proc/sys/fs/protected_hardlinks").read_text() == "1\n"
    StorageBuilder(public / "registry").image("app", "v1", [b"layer"])
    result = as_nobody("export", public / "registry", public / "out")
    assert (result.code, result.stdout) == (2, "")
    assert "the kernel does not allow this user to link the registry's files" in result.stderr


def test_the_owner_of_the_storage_needs_no_root(public: Path) -> None:
    builder = StorageBuilder(public / "registry")
    builder.image("app", "v1", [b"layer"])
    for path in [builder.root, *builder.root.rglob("*")]:
        os.chown(path, NOBODY, NOBODY)
    result = as_nobody("export", builder.root, public / "out")
    assert (result.code, result.stderr) == (0, f"export: 1 images\n{HARD_LINKS}")


def test_an_out_of_another_user_is_one_sentence(public: Path) -> None:
    StorageBuilder(public / "registry").image("app", "v1", [b"layer"])
    dirlayout.prepare(str(public / "out"))
    result = as_nobody("export", public / "registry", public / "out")
    hint = "hint: run as root, or as the owner of OUT and of the registry's storage"
    assert (result.code, result.stdout) == (2, "")
    assert result.stderr == f"error: {public}/out/.skopeo-dir/lock: Permission denied\n{hint}\n"


# --- list


def test_list_is_a_table_of_the_same_bytes_each_time_and_of_any_terminal(
    registry: StorageBuilder,
) -> None:
    name = "group/" + "very-long-name-" * 10 + "x"
    digest = registry.image(name, "v1", [b"layer"])
    size = human_size(sum(path.stat().st_size for path in registry.v2.rglob("data")))
    narrow = skopeo_dir("list", registry.root, COLUMNS="20")
    assert narrow == skopeo_dir("list", registry.root, COLUMNS="500", TERM="dumb")
    header, row = narrow.stdout.splitlines()
    assert header.split() == ["NAME", "DIGEST", "KIND", "PLATFORMS", "SIZE", "SHARED"]
    assert row.split() == [
        f"{name}:v1",
        digest.hex[:12],
        "docker-image",
        "-",
        *size.split(),
        "0",
        "B",
    ]
    assert (narrow.code, narrow.stderr) == (0, "")


def test_names_are_lines_that_from_file_takes(filled: StorageBuilder, tmp_path: Path) -> None:
    names = skopeo_dir("list", filled.root, "--names", "--exclude", "app:v2")
    assert names == Run(0, "app:v1\nteam/app:v1\nteam/app:v2\n", "")
    out = tmp_path / "out"
    done = skopeo_dir("export", filled.root, out, "--from-file", "-", stdin=names.stdout)
    assert done.code == 0
    assert {str(name) for name in dirlayout.staged(str(out))} == set(names.stdout.split())


def test_an_unreadable_tag_is_exit_code_1_and_its_sentence(filled: StorageBuilder) -> None:
    (filled.v2 / "repositories/app/_manifests/tags/v1/current/link").write_bytes(b"")
    names = skopeo_dir("list", filled.root, "--names")
    assert (names.code, names.stdout) == (1, "app:v2\nteam/app:v1\nteam/app:v2\n")
    assert names.stderr.startswith("app:v1: empty-link: the tag's link file is empty")
    table = skopeo_dir("list", filled.root)
    assert table.code == 1
    assert table.stdout.splitlines()[-1].startswith("app:v1: the tag's link file is empty")


def test_a_name_that_is_not_utf_8_is_listed(filled: StorageBuilder) -> None:
    tags = filled.v2 / "repositories/app/_manifests/tags"
    os.rename(tags / "v1", os.path.join(os.fsencode(tags), b"\xff\x1b[31m\n"))
    for options in ([], ["--json"], ["--names"]):
        result = skopeo_dir("list", filled.root, *options, LC_ALL="C", PYTHONUTF8="0")
        assert result.code == 1
        assert "\x1b" not in result.stdout + result.stderr


def test_list_json_is_a_message_an_image(filled: StorageBuilder) -> None:
    rows = messages(skopeo_dir("list", filled.root, "--json"))
    assert [row["name"] for row in rows] == ["app:v1", "app:v2", "team/app:v1", "team/app:v2"]
    assert {row["message_type"] for row in rows} == {"image"}
    assert list(rows[0]) == [
        *("message_type", "name", "digest", "kind", "platforms", "size", "shared_size", "problem")
    ]
    assert Digest.parse(str(rows[0]["digest"])) == rows[0]["digest"]


@pytest.mark.parametrize(
    "arguments", [["list"], ["list", "--json"], ["list", "--names"], ["export"]]
)
def test_a_reader_that_has_gone_ends_it_without_a_word(
    filled: StorageBuilder, tmp_path: Path, arguments: list[str]
) -> None:
    out = [str(tmp_path / "out"), "--json"] if arguments == ["export"] else []
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer) as stdout:
        done = subprocess.run(
            [*EXPORTER, *arguments, str(filled.root), *out],
            stdout=stdout,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert (done.returncode, done.stderr) == (1, b"")


# --- export


def test_export_says_what_it_did(filled: StorageBuilder, tmp_path: Path) -> None:
    done = skopeo_dir("export", filled.root, tmp_path / "out")
    assert (done.code, done.stderr) == (0, f"export: 4 images\n{HARD_LINKS}")
    assert re.fullmatch(
        r"exported 4 images \(0 unchanged, 0 failed\): 20 links, 0 reflinks, 0 copies, "
        r"\S+ kB of unique blobs, "
        r"\d+ B saved by sharing\n",
        done.stdout,
    )


def test_a_failed_image_is_exit_code_1_and_a_line_on_stderr(
    filled: StorageBuilder, tmp_path: Path
) -> None:
    digest = filled.blob(b"app:v1")
    filled.data(digest).unlink()
    done = skopeo_dir("export", filled.root, tmp_path / "out")
    assert (done.code, done.stdout[:36]) == (1, "exported 3 images (0 unchanged, 1 fa")
    assert done.stderr == (
        f"export: 4 images\n{HARD_LINKS}"
        f"export failed: app:v1: the blob {digest} is not in the blob store [missing-blob]\n"
    )


@pytest.mark.parametrize("arguments", [["--help"], ["list", "--names"], ["list", "--json"]])
def test_output_that_cannot_be_written_is_one_sentence(
    filled: StorageBuilder, arguments: list[str]
) -> None:
    source = [] if arguments == ["--help"] else [str(filled.root)]
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*EXPORTER, *arguments, *source], stdout=full, stderr=subprocess.PIPE, check=False
        )
    assert done.returncode == 7
    assert done.stderr.startswith(b"error: stdout: no space or no inodes left\n")
    assert b"Traceback" not in done.stderr


def test_export_json_is_a_message_an_event_and_a_summary(
    filled: StorageBuilder, tmp_path: Path
) -> None:
    filled.data(filled.blob(b"app:v1")).unlink()
    done = skopeo_dir("export", filled.root, tmp_path / "out", "--json")
    kinds = [message["message_type"] for message in messages(done)]
    assert kinds == [
        *("started", "linking", "failed", "exported", "exported", "exported", "summary")
    ]
    assert (done.code, done.stderr) == (1, "")


# --- signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_by_its_own_exit_code(
    filled: StorageBuilder, tmp_path: Path, number: signal.Signals
) -> None:
    os.mkfifo(tmp_path / "names")
    command = [*EXPORTER, "list", str(filled.root), "--from-file", str(tmp_path / "names")]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process,
        open(tmp_path / "names", "wb"),  # returns when the other end is opened, too
    ):
        process.send_signal(number)
        output = process.communicate()
    assert output == (b"", b"error: interrupted by signal %d\n" % number)
    assert process.returncode == 128 + number


@pytest.mark.parametrize("images", [40, 600], ids=["one process", "forks"])
def test_an_interrupted_export_leaves_whole_images_and_the_next_one_finishes(
    registry: StorageBuilder, tmp_path: Path, images: int
) -> None:
    registry.many(images, 4, blobs_per_tag=8)
    command = [*EXPORTER, "export", str(registry.root), str(tmp_path / "out")]
    # Every link takes a while, so that the first images are told of long before the last is made.
    slowly = ["strace", "-D", "-f", "-o", "/dev/null", "-e", "inject=/^link:delay_enter=5000"]
    with subprocess.Popen(
        [*slowly, *command, "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(3)]
        assert b'"message_type":"exported"' in lines[2]
        process.send_signal(signal.SIGTERM)
        process.communicate()
    before = len(list(dirlayout.staged(str(tmp_path / "out"))))
    done = run(*command)
    assert process.returncode == 143
    assert 0 < before < images
    assert done.stdout.startswith(f"exported {images} images ({before} unchanged, 0 failed)")
