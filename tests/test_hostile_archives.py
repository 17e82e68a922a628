"""Archives made to hurt: nothing outside OUT, bounded memory and time, never a false success."""

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from backports import zstd

from exporter.digest import Digest
from tests.archives import BLOCK, END, archive, files, header, member, padded, pax, skopeo_dir
from tests.builders import StorageBuilder
from tests.snapshot import Entry, snapshot

SECONDS = 10.0  # of a CPU, so that neighbours on the machine do not count
MEMORY = 256 * 1024 * 1024

V2 = "docker/registry/v2"
GIGABYTE = 1 << 30
LAYER = b"the layer that most of these are about" * 20


@dataclass(frozen=True)
class Good:
    """A small registry, as members of an archive, and a directory that nobody may write to."""

    root: Path
    contents: dict[str, bytes]
    layer: Digest

    @property
    def members(self) -> bytes:
        return archive(self.contents)

    @property
    def blob(self) -> str:
        return path_of(self.layer)

    def without(self, name: str) -> bytes:
        return archive({key: value for key, value in self.contents.items() if key != name})

    def before_and_after(self, name: str) -> tuple[bytes, bytes]:
        """Return the members before and after one of them."""
        names = list(self.contents)
        at = names.index(name)
        before = {key: self.contents[key] for key in names[:at]}
        return archive(before), archive({key: self.contents[key] for key in names[at + 1 :]})


def path_of(digest: Digest) -> str:
    return f"{V2}/blobs/{digest.algorithm}/{digest.hex[:2]}/{digest.hex}/data"


def link_of(name: str, tag: str) -> str:
    return f"{V2}/repositories/{name}/_manifests/tags/{tag}/current/link"


@pytest.fixture
def good(tmp_path: Path) -> Good:
    builder = StorageBuilder(tmp_path / "registry")
    builder.image("app", "v1", [LAYER, b"another"])
    builder.image("team/app", "v1", [LAYER])
    builder.image("team/other", "v1", [b"a layer of its own"])
    (tmp_path / "outside").mkdir()
    return Good(tmp_path / "outside", files(builder.root), Digest.of(LAYER))


def escape(path: str) -> Callable[[Good], bytes]:
    return lambda good: good.members + member(path.format(root=good.root), b"escaped") + END


def instead_of_the_layer(make: Callable[[Good], bytes]) -> Callable[[Good], bytes]:
    def build(good: Good) -> bytes:
        before, after = good.before_and_after(good.blob)
        return before + make(good) + after + END

    return build


def symlink_chain(good: Good) -> bytes:
    """CVE-2025-4517: links whose expansion is longer than PATH_MAX, and one that then goes up."""
    directory, steps = "d" * 247, "abcdefghijklmnop"
    made, path = b"", ""
    for step in steps:
        made += member(f"{path}{directory}"[-99:] + "/", kind=b"5")
        made += pax({"path": f"{path}{step}", "linkpath": directory}) + header("x", kind=b"2")
        path += f"{step}/"
    link = "/".join(steps) + "/" + "l" * 254
    made += pax({"path": link, "linkpath": "../" * len(steps)}) + header("x", kind=b"2")
    made += pax({"path": "escape", "linkpath": f"{link}/../../../../{good.root}"})
    made += header("x", kind=b"2") + member("escape/newfile", b"escaped")
    return made + good.members + END


def pax_bomb(good: Good) -> bytes:
    """One extended header of 1 GiB, in about 1 MB."""
    output = io.BytesIO()
    with gzip.GzipFile(fileobj=output, mode="wb", compresslevel=9, mtime=0) as file:
        file.write(good.members + header("PaxHeaders/0", GIGABYTE, kind=b"x"))
        file.write(f"{GIGABYTE} comment=".encode())
        left = GIGABYTE - len(f"{GIGABYTE} comment=")
        while left:
            left -= file.write(bytes(min(left, 1 << 24)))
        file.write(member("x") + END)
    return output.getvalue()


def link_bomb(good: Good) -> bytes:
    """A link file of 1 GiB, in about 1 MB."""
    output = io.BytesIO()
    with gzip.GzipFile(fileobj=output, mode="wb", compresslevel=9, mtime=0) as file:
        file.write(good.members + header(link_of("bomb", "v1"), GIGABYTE))
        for _ in range(64):
            file.write(bytes(GIGABYTE // 64))
        file.write(END)
    return output.getvalue()


def dictionary_bomb(good: Good) -> bytes:
    """An xz stream that says that it needs a dictionary of 4 GiB."""
    packed = bytearray(lzma.compress(good.members + END, preset=0))
    size = (packed[12] + 1) * 4
    assert packed[14:16] == b"\x21\x01"  # one filter: LZMA2, with one byte of properties
    packed[16] = 40
    packed[12 + size - 4 : 12 + size] = zlib.crc32(packed[12 : 12 + size - 4]).to_bytes(4, "little")
    return bytes(packed)


def window_bomb(good: Good) -> bytes:
    """A zstd frame that says that it needs a window of 2 GiB."""
    content = good.members + END
    frame = b"\x28\xb5\x2f\xfd" + b"\x00" + bytes([21 << 3])
    for start in range(0, len(content), 1 << 16):
        piece = content[start : start + (1 << 16)]
        is_last = start + len(piece) == len(content)
        frame += (len(piece) << 3 | is_last).to_bytes(3, "little") + piece
    return frame


def nested_tar_behind_a_damaged_header(good: Good) -> bytes:
    """A layer that is a tar with a tag's link in it; its own header is damaged."""
    theirs = StorageBuilder(good.root.parent / "theirs")
    other = theirs.image("evil", "v1", [b"evil"])
    evil = archive(files(theirs.root)) + member(link_of("app", "v1"), other.encode())
    layer = evil + END
    damaged = bytearray(header(path_of(Digest.of(layer)), len(layer)))
    damaged[0] ^= 1
    return bytes(damaged) + padded(layer) + good.members + END


def flipped(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


def appended(good: Good) -> bytes:
    return good.members + END + archive({"other/file": b"x"}) + END


HARMLESS: dict[str, Callable[[Good], bytes]] = {
    "name with dots below the root": escape(f"{V2}/blobs/sha256/../../../../outside/escaped"),
    "name with dots": escape("../outside/escaped"),
    "many dots": escape("../" * 20 + "tmp/escaped"),
    "absolute name": escape("{root}/escaped"),
    "absolute names throughout": lambda good: (
        archive({f"/{name}": content for name, content in good.contents.items()}) + END
    ),
    "a link out, and a file behind it": lambda good: (
        header("out", kind=b"2", target=str(good.root))
        + member("out/escaped", b"escaped") + good.members + END
    ),
    "the registry's own folder is a link out": lambda good: (
        header("docker", kind=b"2", target=str(good.root)) + good.members + END
    ),
    "a chain of links longer than PATH_MAX": symlink_chain,
    "a device and a FIFO": lambda good: (
        header("dev/mem", kind=b"3") + header("dev/sda", kind=b"4") + header("fifo", kind=b"6")
        + good.members + END
    ),
    "a setuid file": escape("bin/escaped"),
    "a name of 100,000 bytes": lambda good: (
        pax({"path": "a/" * 50_000}) + member("x", b"x") + good.members + END
    ),
    "a hundred global headers": lambda good: (
        member("g", b"20 comment=abcdefghi\n", kind=b"g") * 100 + good.members + END
    ),
}  # fmt: skip

INVALID: dict[str, Callable[[Good], bytes]] = {
    "repository with dots": escape(link_of("../../../../outside/x", "v1")),
    "tag that is two dots": escape(link_of("app", "..")),
    "tag with a terminal's escape codes": escape(link_of("app", "\x1b[2Jv1")),
    "tag that starts with a dash": escape(link_of("app", "--help")),
    "tag with a newline": escape(link_of("app", "latest\n")),
    "a link file of 1 GiB": link_bomb,
    "a manifest of brackets": lambda good: (
        good.members
        + member(path_of(Digest.of(b'{"a":' + b"[" * 100_000)), b'{"a":' + b"[" * 100_000)
        + member(link_of("deep", "v1"), Digest.of(b'{"a":' + b"[" * 100_000).encode()) + END
    ),
}  # fmt: skip

DAMAGED: dict[str, Callable[[Good], bytes]] = {
    "blob as a link out": instead_of_the_layer(
        lambda good: header(good.blob, kind=b"2", target="/etc/passwd")
    ),
    "blob as a hard link out": instead_of_the_layer(
        lambda good: header(good.blob, kind=b"1", target="/etc/passwd")
    ),
    "blob as a hard link to itself": instead_of_the_layer(
        lambda good: pax({"linkpath": good.blob}) + header(good.blob, kind=b"1")
    ),
    "blobs as hard links to each other": instead_of_the_layer(
        lambda good: (
            header(good.blob, kind=b"1", target="x")
            + pax({"linkpath": good.blob}) + header("x", kind=b"1")
        )
    ),
    "blob as a device": instead_of_the_layer(lambda good: header(good.blob, kind=b"3")),
    "blob as a directory": instead_of_the_layer(lambda good: header(good.blob, kind=b"5")),
    "link file as a FIFO": lambda good: (
        good.without(link_of("app", "v1")) + header(link_of("app", "v1"), kind=b"6") + END
    ),
    "sparse member of 1 TiB": instead_of_the_layer(
        lambda good: pax({"path": good.blob}) + header(
            "x", kind=b"S", magic=b"ustar  ", tail=bytes(138) + b"%011o\0" % (1 << 33)
        )
    ),
    "sparse member of 1 TiB, by pax": instead_of_the_layer(
        lambda good: (
            pax({
                "GNU.sparse.major": "1", "GNU.sparse.minor": "0",
                "GNU.sparse.name": good.blob, "GNU.sparse.realsize": str(1 << 40),
            })
            + member("GNUSparseFile.0/data", b"1\n0\n0\n")
        )
    ),
    "member of 1 TiB that is not there": instead_of_the_layer(
        lambda good: pax({"size": str(1 << 40)}) + header(good.blob)
    ),
    "one pax header of 1 GiB": pax_bomb,
    "5,000 pax headers in a row": lambda good: (
        pax({"comment": "x"}) * 5000 + good.members + END
    ),
    "5,000 long names in a row": lambda good: (
        member("././@LongLink", b"x" * 200, kind=b"L") * 5000 + good.members + END
    ),
    "pax header at the end": lambda good: good.members + pax({"path": "x"}) + END,
    "pax record of a false length": lambda good: (
        good.members + member("x", b"99 path=x\n", kind=b"x") + member("x") + END
    ),
    "a tag twice": lambda good: (
        good.members + member(link_of("app", "v1"), good.layer.encode()) + END
    ),
    "a blob twice": lambda good: good.members + member(good.blob, b"other") + END,
    "a blob twice, the false one first": lambda good: (
        member(good.blob, b"other") + good.members + END
    ),
    "blob of another digest": instead_of_the_layer(lambda good: member(good.blob, LAYER[::-1])),
    "blob of another length": instead_of_the_layer(lambda good: member(good.blob, LAYER[:-1])),
    "empty blob": instead_of_the_layer(lambda good: member(good.blob)),
    "damaged header": lambda good: flipped(
        good.members + END, (good.members.index(padded(LAYER)) // BLOCK - 1) * BLOCK + 20
    ),
    "damaged first header": lambda good: flipped(good.members + END, 0),
    "a layer's tar behind a damaged header": nested_tar_behind_a_damaged_header,
    "negative size": instead_of_the_layer(
        lambda good: header(good.blob, size_field=b"\xff" * 12)
    ),
    "size beyond 8 EiB": instead_of_the_layer(
        lambda good: header(good.blob, size_field=b"\x80" + b"\xff" * 11)
    ),
    "size that is no number": instead_of_the_layer(
        lambda good: header(good.blob, size_field=b"0x123456789a")
    ),
    "another archive behind it": appended,
    "the same archive behind it": lambda good: (good.members + END) * 2,
    "rubbish behind it": lambda good: good.members + END + b"rubbish" * 1000,
    "no end": lambda good: good.members,
    "half an end": lambda good: good.members + bytes(BLOCK),
    "zeros within": lambda good: bytes(BLOCK).join(good.before_and_after(good.blob)) + END,
    "two registries": lambda good: (
        good.members + archive({f"b/{name}": data for name, data in good.contents.items()}) + END
    ),
    "gzip cut": lambda good: gzip.compress(good.members + END)[:-100],
    "gzip without its checksum": lambda good: gzip.compress(good.members + END)[:-8],
    "gzip with a false checksum": lambda good: flipped(gzip.compress(good.members + END), -8),
    "rubbish behind gzip": lambda good: gzip.compress(good.members + END) + b"rubbish",
    "xz cut": lambda good: lzma.compress(good.members + END)[:-100],
    "xz without its index": lambda good: lzma.compress(good.members + END)[:-20],
    "bzip2 cut": lambda good: bz2.compress(good.members + END)[:-100],
    "zstd cut": lambda good: zstd.compress(good.members + END)[:-100],
    "zstd with a flipped byte": lambda good: flipped(
        zstd.compress(good.members + END, options={zstd.CompressionParameter.checksum_flag: 1}), -1
    ),
    "xz with a dictionary of 4 GiB": dictionary_bomb,
    "zstd with a window of 2 GiB": window_bomb,
    "nothing": lambda _: b"",
    "zeros": lambda _: bytes(100 * BLOCK),
    "text": lambda _: b"not an archive at all\n" * 1000,
    "another archive": lambda _: archive({"etc/passwd": b"x"}) + END,
    "only a compressed zero": lambda _: gzip.compress(bytes(BLOCK)),
}  # fmt: skip

CASES = [
    pytest.param(make, code, id=name)
    for cases, code in ((HARMLESS, 0), (INVALID, 1), (DAMAGED, 3))
    for name, make in cases.items()
]


@pytest.mark.parametrize(("make", "code"), CASES)
def test_a_hostile_archive_stays_in_out_and_in_bounds(
    make: Callable[[Good], bytes], code: int, good: Good, tmp_path: Path
) -> None:
    source, out = tmp_path / "hostile.tar", tmp_path / "out"
    source.write_bytes(make(good))
    out.mkdir()
    before = snapshot(tmp_path)

    run = skopeo_dir("export", source, out)

    after = snapshot(tmp_path)
    assert (run.code, "Traceback" in run.stderr, "\x1b" in run.stderr) == (code, False, False), run
    assert _outside(after) == _outside(before)
    assert run.memory <= MEMORY
    assert run.cpu_seconds <= SECONDS
    assert not (out / ".skopeo-dir/unpacked").exists()


def _outside(entries: dict[str, Entry]) -> dict[str, Entry]:
    return {path: entry for path, entry in entries.items() if path.split("/")[0] != "out"}
