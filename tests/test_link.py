"""How a file comes into an image: the mode that was asked for, or a sentence; relays made once."""

import errno
import os
from pathlib import Path

import pytest

from exporter import link
from exporter.digest import Digest
from exporter.errors import NoSpaceError, UsageError
from exporter.link import LinkMode, Links
from exporter.verdict import ProblemError, Verdict

CONTENT = b"content"
DIGEST = Digest.of(CONTENT)
REFUSALS = ["EXDEV", "EPERM", "EROFS", "EACCES", "EMLINK", "EOPNOTSUPP", "EOVERFLOW", "EIO"]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(CONTENT)
    (tmp_path / "relay").mkdir()
    return path


def links(source: Path, mode: LinkMode) -> Links:
    root = str(source.parent)
    return Links(mode, root=root, work=root, relays=f"{root}/relay")


def put(source: Path, mode: LinkMode, *names: str) -> Links:
    made = links(source, mode)
    for name in names:
        made.put(source.name, DIGEST, name)
    return made


def entry(path: Path) -> "os.DirEntry[str]":
    with os.scandir(path.parent) as entries:
        return next(each for each in entries if each.name == path.name)


def is_right(source: Path, mode: LinkMode, name: str) -> bool:
    found = entry(source.parent / name)
    return links(source, mode).is_right(found, source.name, source.stat().st_ino, DIGEST)


@pytest.mark.parametrize("name", [*REFUSALS, "ENAMETOOLONG"])
def test_every_refusal_is_a_sentence_of_its_own_with_a_remedy(name: str) -> None:
    number = getattr(errno, name)
    error = link.refusal(OSError(number, os.strerror(number)), "/source", "/out")
    assert isinstance(error, UsageError)
    assert error.message.startswith("cannot link /source into /out: ")
    assert error.hint


@pytest.mark.parametrize("name", ["ENOSPC", "EDQUOT"])
def test_no_space_is_exit_code_7(name: str) -> None:
    number = getattr(errno, name)
    error = link.refusal(OSError(number, os.strerror(number)), "/source", "/out")
    assert isinstance(error, NoSpaceError)


@pytest.mark.parametrize("mode", [LinkMode.AUTO, LinkMode.HARDLINK, LinkMode.SYMLINK])
def test_a_trial_leaves_nothing_behind(source: Path, mode: LinkMode) -> None:
    assert link.choose(mode, str(source), str(source.parent / "relay")) == (mode, "")
    assert (list((source.parent / "relay").iterdir()), source.stat().st_nlink) == ([], 1)


@pytest.mark.parametrize("mode", [LinkMode.AUTO, LinkMode.HARDLINK])
def test_a_hard_link_is_the_file_itself(source: Path, mode: LinkMode) -> None:
    made = put(source, mode, "a", "b")
    assert (source.stat().st_nlink, made.counts.linked) == (3, 2)
    assert is_right(source, mode, "a")


def test_a_file_is_copied_once_and_the_copy_is_linked(source: Path) -> None:
    made = put(source, LinkMode.COPY, "a", "b")
    a, b = (source.parent / name for name in ("a", "b"))
    assert (made.counts.copied, made.counts.linked) == (1, 2)
    assert (a.read_bytes(), a.stat().st_ino) == (CONTENT, b.stat().st_ino)
    assert source.stat().st_nlink == 1
    assert put(source, LinkMode.COPY, "c").counts.copied == 0


def test_a_copy_that_is_not_what_it_is_called_is_refused_and_not_kept(source: Path) -> None:
    source.write_bytes(b"damaged")
    with pytest.raises(ProblemError) as caught:
        put(source, LinkMode.COPY, "a")
    assert caught.value.problem.verdict is Verdict.WRONG_DIGEST
    link.remove_unused_relays(str(source.parent / "relay"))
    assert sorted(path.name for path in source.parent.rglob("*")) == ["relay", "source"]


def test_a_copy_is_not_taken_for_a_hard_link_nor_the_other_way_round(source: Path) -> None:
    put(source, LinkMode.HARDLINK, "hard")
    (source.parent / "foreign").write_bytes(CONTENT)
    assert not is_right(source, LinkMode.COPY, "hard")
    assert not is_right(source, LinkMode.AUTO, "foreign")


def test_a_relay_is_right_in_every_mode_that_makes_hard_links(source: Path) -> None:
    put(source, LinkMode.COPY, "a")
    modes = [LinkMode.AUTO, LinkMode.HARDLINK, LinkMode.REFLINK, LinkMode.COPY]
    assert [mode for mode in modes if not is_right(source, mode, "a")] == []


def test_a_symbolic_link_is_right_if_it_points_to_the_very_file(source: Path) -> None:
    put(source, LinkMode.SYMLINK, "a")
    (source.parent / "b").symlink_to("source")
    (source.parent / "c").write_bytes(CONTENT)
    assert (source.parent / "a").readlink() == source
    assert [is_right(source, LinkMode.SYMLINK, name) for name in "abc"] == [True, False, False]


def test_relays_go_when_nothing_is_linked_to_them_any_more(source: Path) -> None:
    relays = str(source.parent / "relay")
    put(source, LinkMode.COPY, "a")
    link.remove_unused_relays(relays)
    assert len(os.listdir(relays)) == 1
    (source.parent / "a").unlink()
    link.remove_unused_relays(relays)
    assert os.listdir(relays) == []
