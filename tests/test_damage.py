"""Every file of a registry, damaged in every way: who is hit, and what is said."""

import itertools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import orjson
import pytest

from exporter.check import check
from exporter.events import Checked, Event
from exporter.storage import Storage, tree
from tests.builders import StorageBuilder
from tests.test_kinds import everything, nested, schema1

V2 = "docker/registry/v2"


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def append(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"0")


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def to_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def to_symlink(path: Path) -> None:
    """Points outside the registry, to the very bytes that were there."""
    outside = next(p for p in path.parents if p.name == "docker").parents[1] / "outside"
    outside.write_bytes(path.read_bytes())
    path.unlink()
    path.symlink_to(outside)


def to_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def unreadable(path: Path) -> None:
    path.chmod(0)


def restore(path: Path, content: bytes) -> None:
    if path.is_dir():
        path.rmdir()
    else:
        path.unlink(missing_ok=True)
    path.write_bytes(content)


Damage = Callable[[Path], None]
DAMAGES: list[Damage] = [
    Path.unlink, truncate, empty, append, flip, to_directory, to_symlink, to_fifo, unreadable,
]  # fmt: skip


def verdicts(root: Path, *, digests: bool) -> dict[str, str]:
    found: dict[str, str] = {}

    def keep(event: Event) -> None:
        if isinstance(event, Checked):
            found[event.name] = event.verdict

    check(Storage.open(str(root)), digests=digests, observe=keep)
    return found


def users(root: Path) -> dict[str, set[str]]:
    """Which tags need which file, worked out without our reader."""
    v2 = root / V2
    found: dict[str, set[str]] = {}

    def data(digest: str) -> Path:
        algorithm, _, name = digest.partition(":")
        return v2 / "blobs" / algorithm / name[:2] / name / "data"

    def walk(digest: str) -> Iterator[Path]:
        path = data(digest)
        yield path
        value = orjson.loads(path.read_bytes())
        for child in value.get("manifests", []):
            yield from walk(child["digest"])
        entries = [value["config"]] if "config" in value else []
        entries += [each for each in value.get("layers", []) if not each.get("urls")]
        yield from (data(each["digest"]) for each in entries)
        yield from (data(each["blobSum"]) for each in value.get("fsLayers", []))

    for link in v2.glob("repositories/**/current/link"):
        tag = link.parent.parent
        name = f"{tag.parents[2].relative_to(v2 / 'repositories')}:{tag.name}"
        for path in (link, *walk(link.read_text())):
            found.setdefault(str(path.relative_to(root)), set()).add(name)
    return found


def expected(path: str, damage: Damage, healthy: str, *, manifest: bool, digests: bool) -> set[str]:
    """Which verdicts are right for a tag that needs the file, and has `healthy` without damage."""
    name = damage.__name__
    if path.endswith("/link"):
        if name == "flip":
            return {"invalid-link", "missing-manifest"}  # the digest may still be one
        return {"empty-link"} if name == "empty" else {"invalid-link"}
    gone = name in {"unlink", "to_directory", "to_symlink", "to_fifo", "unreadable"}
    if manifest:
        return {"missing-manifest", "missing-child"} if gone else {"wrong-digest"}
    if gone:
        return {"missing-blob"}
    if name == "flip":
        # The layer of this one is always read, since its size is not what its manifest states.
        known = {"wrong-size"} if healthy == "misstated-size" else set()
        return known | ({"wrong-digest"} if digests else {healthy})
    # Docker schema 1 states no sizes: only reading the blob tells.
    return {"wrong-size", "wrong-digest"} if digests else {"wrong-size", "schema1"}


def sweep(registry: Path) -> tuple[int, list[str]]:
    """Damage every file in every way; return how many cases there were, and what was not right."""
    healthy = verdicts(registry, digests=True)
    needs = users(registry)
    manifests = {
        str(path.relative_to(registry))
        for path in registry.glob(f"{V2}/blobs/**/data")
        if path.read_bytes().startswith(b'{"') and b"schemaVersion" in path.read_bytes()
    }
    paths = sorted(str(p.relative_to(registry)) for p in registry.glob("**/*") if p.is_file())
    wrong: list[str] = []
    count = 0
    tree._WRITING_SECONDS = (0.0, 0.0)  # nobody writes here
    for path, damage in itertools.product(paths, DAMAGES):
        target = registry / path
        content = target.read_bytes()
        damage(target)
        for digests in (False, True):
            found = verdicts(registry, digests=digests)
            for name in healthy | found:
                right = {healthy.get(name, "")}
                if name in needs.get(path, ()):
                    right = expected(
                        path, damage, healthy[name], manifest=path in manifests, digests=digests
                    )
                if found.get(name) not in right:
                    wrong.append(f"{damage.__name__} {path} {digests}: {name} {found.get(name)}")
            count += 1
        restore(target, content)
    return count, wrong


@pytest.mark.slow
def test_every_damage_to_every_file_is_named_and_nothing_else_is() -> None:
    """As nobody, since root can read everything, and so not below pytest's private directory."""
    with tempfile.TemporaryDirectory() as work:
        os.chmod(work, 0o755)
        registry = Path(work, "tree", "registry")
        everything(registry)
        # Its manifest misstates a size, so damage may make it right; tests/test_kinds.py has it.
        shutil.rmtree(registry / V2 / "repositories/kinds/artifact/_manifests/tags/misstated")
        nested(StorageBuilder(registry), "kinds/nested")
        schema1(StorageBuilder(registry), "kinds/old", "v1")
        subprocess.run(["chown", "-R", "65534:65534", registry.parent], check=True)
        count, wrong = as_nobody(registry)
    assert (wrong, count > 2_000) == ([], True)


def as_nobody(registry: Path) -> tuple[int, list[str]]:
    """Return what `sweep` returns to a user who is not root.

    In a fork of this process: nobody may not be able to read our own modules.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            answer = orjson.dumps(sweep(registry))
        except BaseException as error:  # noqa: BLE001 - it must not reach pytest's own stack
            answer = orjson.dumps((0, [repr(error)]))
        with open(writer, "wb") as file:
            file.write(answer)
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as file:
        count, wrong = orjson.loads(file.read())
    os.waitpid(child, 0)
    return count, wrong
