"""The tar reader and the streams below it, against Python's own tarfile and compressors."""

import bz2
import gzip
import io
import lzma
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from backports import zstd
from hypothesis import given
from hypothesis import strategies as st

from exporter.storage import members
from exporter.storage.compression import Piped, PlainFile, Stream
from exporter.storage.tar import Kind, TarReader
from tests.archives import END, header, member, pax

COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "xz": lzma.compress,
    "zstd": zstd.compress,
    "bzip2": bz2.compress,
}
FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]

component = st.text("abcdefghijklmnop._-", min_size=1, max_size=90).filter(lambda t: t[0] != ".")
names = st.lists(component, min_size=1, max_size=4).map("/".join).filter(lambda n: len(n) < 250)


def plain(content: bytes) -> Stream:
    return PlainFile(io.BytesIO(content), len(content))


def read(stream: Stream) -> tuple[list[tuple[str, Kind, bytes]], list[str]]:
    """Return all that a reader gives, and what it says is wrong."""
    reader = TarReader(stream, lambda _: True)
    found = [(each.name, each.kind, reader.read(each.size)) for each in reader]
    return found, reader.damage


def wrong_with(content: bytes) -> list[str]:
    return read(plain(content))[1]


@given(st.lists(st.tuples(names, st.binary(max_size=2000)), max_size=8), st.sampled_from(FORMATS))
def test_every_member_that_tarfile_writes_is_read_back(
    contents: list[tuple[str, bytes]], form: int
) -> None:
    output = io.BytesIO()
    try:
        with tarfile.open(fileobj=output, mode="w", format=form) as opened:
            for name, content in contents:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                opened.addfile(info, io.BytesIO(content))
    except ValueError:
        return  # a name that ustar cannot hold
    expected = [(name, Kind.FILE, content) for name, content in contents]
    assert read(plain(output.getvalue())) == (expected, [])


@given(st.binary(max_size=4096))
def test_any_bytes_end_the_reader_in_order(content: bytes) -> None:
    assert wrong_with(content)


@given(st.binary(max_size=600), st.integers(0, 511))
def test_no_change_of_a_header_goes_unnoticed(content: bytes, at: int) -> None:
    archive = bytearray(member("name", content) + END)
    archive[at] ^= 0x41
    assert wrong_with(bytes(archive))


def test_a_pax_header_overrules_what_follows_it() -> None:
    content = pax({"path": "long", "size": "3"}) + header("short", 9) + b"abc".ljust(512, b"\0")
    assert read(plain(content + END)) == ([("long", Kind.FILE, b"abc")], [])


def test_the_target_of_a_hard_link_is_given() -> None:
    content = pax({"linkpath": "target"}) + header("name", kind=b"1") + END
    assert [each.target for each in TarReader(plain(content), lambda _: True)] == ["target"]


def test_a_size_may_be_binary() -> None:
    content = header("name", size_field=(3 | 1 << 95).to_bytes(12, "big")) + b"abc".ljust(
        512, b"\0"
    )
    assert read(plain(content + END)) == ([("name", Kind.FILE, b"abc")], [])


@pytest.mark.parametrize("size", [b"-0000000001\0", b"0o000000012\0", b"1_000000000\0", b"9" * 12])
def test_a_size_that_int_would_take_is_refused(size: bytes) -> None:
    assert "a number" in f"{wrong_with(header('name', size_field=size) + END)}"


@pytest.mark.parametrize("name", COMPRESSORS)
@given(data=st.data())
def test_a_stream_gives_what_was_compressed_in_whatever_pieces(
    name: str, data: st.DataObject
) -> None:
    parts = data.draw(st.lists(st.binary(max_size=3000), min_size=1, max_size=4))
    packed = b"".join(COMPRESSORS[name](part) for part in parts)
    stream, whole, at = Piped(io.BytesIO(packed)), b"".join(parts), 0
    while at < len(whole):
        size = data.draw(st.integers(1, 2000))
        if data.draw(st.booleans()):
            assert stream.skip(size) == len(whole[at : at + size])
        else:
            assert stream.read(size) == whole[at : at + size]
        at += size
    assert (stream.read(1), stream.problem) == (b"", "")


@pytest.mark.parametrize("name", COMPRESSORS)
def test_a_large_stream_is_the_same(name: str) -> None:
    content = bytes(3_000_000) + bytes(range(256)) * 10_000
    stream = Piped(io.BytesIO(COMPRESSORS[name](content)))
    assert (stream.read(len(content) + 1) == content, stream.problem) == (True, "")


@pytest.mark.parametrize("name", COMPRESSORS)
def test_a_stream_may_be_padded_with_zeros(name: str) -> None:
    stream = Piped(io.BytesIO(COMPRESSORS[name](b"content") + bytes(10240)))
    assert (stream.read(100), stream.problem) == (b"content", "")


@pytest.mark.parametrize("name", COMPRESSORS)
def test_a_stream_that_ends_early_gives_what_it_had_and_says_so(name: str) -> None:
    packed = COMPRESSORS[name](bytes(range(256)) * 100)
    for cut in range(7, len(packed), 7):
        stream = Piped(io.BytesIO(packed[:cut]))
        given_ = stream.read(1_000_000)
        assert (bytes(range(256)) * 100).startswith(given_)
        assert stream.problem, cut


HEX = "ab" * 32


@pytest.mark.parametrize(
    ("name", "path"),
    [
        (f"docker/registry/v2/blobs/sha256/ab/{HEX}/data", f"sha256:{HEX}"),
        (f"./blobs/sha256/ab/{HEX}/data", f"sha256:{HEX}"),
        (f"//x//./y/blobs/sha256/ab/{HEX}/data", f"sha256:{HEX}"),
        (f"blobs/sha256/ac/{HEX}/data", None),
        (f"blobs/sha256/ab/{HEX}/../data", None),
        (f"blobs/sha256/ab/{HEX}x/data", None),
        (f"blobs/sha256/ab/{HEX.upper()}/data", None),
        (f"blobs/md5/ab/{HEX}/data", None),
        (f"blobs/sha256/ab/{HEX}/data\n", None),
        ("repositories/a/_manifests/tags/v1/current/link", "repositories/a/_manifests/tags/v1"),
        (
            "x/repositories/y/docker/registry/v2/repositories/repositories/a/_manifests/tags/b",
            "repositories/repositories/a/_manifests/tags/b",
        ),
        ("repositories/a/_manifests/tags/v1/current/link/x", None),
        ("repositories/a/_manifests/tags/v1/index", None),
        ("repositories/a/_layers/sha256/x/link", None),
    ],
)
def test_what_a_name_means(name: str, path: str | None) -> None:
    place = members.place(name)
    if isinstance(place, members.Link):
        assert place.path.removesuffix("/current/link") == path
    else:
        assert (place and place.digest) == path


@given(st.text("abv/._-\\\0\n:", max_size=60), st.text("abv._-\0\n", min_size=1, max_size=9))
def test_a_link_never_has_a_path_that_leaves_the_tree(name: str, tag: str) -> None:
    place = members.place(f"repositories/{name}/_manifests/tags/{tag}/current/link")
    assert place is None or isinstance(place, members.Link)
    if place is not None:
        root = Path("/root/of/tree")
        assert (root / place.path).is_relative_to(root)
        assert ".." not in place.path.split("/")
        assert bool(place.path) != bool(place.error)
