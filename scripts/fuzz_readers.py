"""The fuzz target of `scripts/fuzz`: any bytes as an archive and as a manifest.

The laws: a reader ends with a result or with its own error, and nothing is written but below the
directory that was given.
"""

import contextlib
import gzip
import os
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["exporter"]):
    from exporter import manifest
    from exporter.errors import SourceError
    from exporter.plan import resolve
    from exporter.storage import TaggedImage
    from exporter.storage.archive import Archive
    from exporter.storage.archive_tree import ArchiveTree

from exporter.digest import Digest
from tests.archives import BLOCK, END, archive, files, pax
from tests.builders import StorageBuilder


def main() -> None:
    """Write a corpus into the first argument, a directory, and run libFuzzer on it."""
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir="/dev/shm") as name:
        work = Path(name)
        _write_corpus(Path(sys.argv[1]), work / "registry")
        (work / "box").mkdir()

        def one(data: bytes) -> None:
            _manifest(data)
            _archive(_with_checksums(data), work / "box")

        atheris.Setup(sys.argv, one)
        # libFuzzer leaves by exit(3): nothing after this line is reached.
        atheris.Fuzz()


def _manifest(data: bytes) -> None:
    with contextlib.suppress(manifest.ManifestError):
        parsed = manifest.parse(data)
        for blob in (*parsed.blobs(), *parsed.children):
            Digest.parse(blob.digest)


def _archive(data: bytes, box: Path) -> None:
    source, tree = box / "archive", box / "tree"
    source.write_bytes(data)
    with contextlib.suppress(SourceError):
        registry = Archive(str(source))
        unpacked = ArchiveTree(registry, str(tree))
        unpacked.unpack()
        storage = unpacked.storage()
        for tag in storage.tags():
            if isinstance(tag, TaggedImage):
                resolve(tag.digest, storage.manifest)
    if sorted(os.listdir(box)) not in (["archive"], ["archive", "tree"]):
        raise RuntimeError(f"something else was written: {os.listdir(box)}")
    for path in tree.rglob("data"):
        digest = Digest.parse(f"{path.parts[-4]}:{path.parts[-2]}")
        if Digest.of(path.read_bytes(), algorithm=digest.algorithm) != digest:
            raise RuntimeError(f"a blob in the tree is not what it is called: {path}")
    _remove(tree)


def _with_checksums(data: bytes) -> bytes:
    """Repair the checksum of every header: no fuzzer would guess it."""
    blocks = [data[at : at + BLOCK] for at in range(0, len(data), BLOCK)]
    return b"".join(
        block[:148] + b"%06o\0 " % (sum(block[:148]) + 256 + sum(block[156:])) + block[156:]
        if len(block) == BLOCK and block[257:262] == b"ustar"
        else block
        for block in blocks
    )


def _remove(tree: Path) -> None:
    for directory, directories, names in os.walk(tree, topdown=False):
        for name in names:
            os.unlink(f"{directory}/{name}")
        for name in directories:
            os.rmdir(f"{directory}/{name}")


def _write_corpus(corpus: Path, root: Path) -> None:
    builder = StorageBuilder(root)
    digest = builder.image("app", "v1", [b"layer"])
    builder.index("app", "all", [digest])
    plain = archive(files(root)) + END
    seeds = [plain, pax({"path": "docker/x"}) + plain, gzip.compress(plain)]
    seeds += [path.read_bytes() for path in builder.v2.rglob("data")]
    for number, seed in enumerate(seeds):
        (corpus / f"seed-{number}").write_bytes(seed)


if __name__ == "__main__":
    main()
