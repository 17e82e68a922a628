"""Manifests made to exhaust whoever reads them: each is refused or handled, fast and in little."""

import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest

from exporter.digest import Digest
from exporter.manifest import MAX_SIZE
from tests.builders import (
    StorageBuilder,
    image_config,
    index_manifest,
)

MEMORY = 128 * 1024 * 1024
CPU_SECONDS = 10  # a bomb takes hours; the figure of a test machine under load must not decide
CONFIG = image_config([])
ABSENT = "sha256:" + "0" * 64


def fill(item: bytes, head: bytes, tail: bytes) -> bytes:
    """Return the largest list of `item`s that is still read as a manifest."""
    count = (MAX_SIZE - len(head) - len(tail) + 1) // (len(item) + 1)
    return head + b",".join([item] * count) + tail


def entry(digest: str, size: int = 1, **fields: object) -> bytes:
    return orjson.dumps({"digest": digest, "size": size, **fields})


def too_large(builder: StorageBuilder) -> None:
    """A million layers: 90 MB of JSON."""
    entries = b",".join([entry(ABSENT)] * 1_000_000)
    builder.manifest("bomb", "v1", b'{"schemaVersion":2,"layers":[%b]}' % entries)


def one_byte_too_large(builder: StorageBuilder) -> None:
    whole = orjson.dumps({"schemaVersion": 2, "config": {}, "layers": []})
    builder.manifest("bomb", "v1", whole + b" " * (MAX_SIZE + 1 - len(whole)))


def deep_json(builder: StorageBuilder) -> None:
    deep = b'{"a":' * 2_000 + b"1" + b"}" * 2_000
    builder.manifest("bomb", "v1", b'{"schemaVersion":2,"config":%b,"layers":[]}' % deep)


def many_layers(builder: StorageBuilder) -> None:
    config = builder.layer("bomb", CONFIG)
    head = b'{"schemaVersion":2,"config":%b,"layers":[' % entry(config, len(CONFIG))
    builder.manifest("bomb", "v1", fill(entry(ABSENT), head, b"]}"))


def many_foreign_layers(builder: StorageBuilder) -> None:
    config = builder.layer("bomb", CONFIG)
    head = b'{"schemaVersion":2,"config":%b,"layers":[' % entry(config, len(CONFIG))
    builder.manifest("bomb", "v1", fill(entry(ABSENT, urls=["u"]), head, b"]}"))


def many_schema1_layers(builder: StorageBuilder) -> None:
    layer = orjson.dumps({"blobSum": ABSENT})
    builder.manifest("bomb", "v1", fill(layer, b'{"schemaVersion":1,"fsLayers":[', b"]}"))


def many_children(builder: StorageBuilder) -> None:
    """Every entry is the same child, and the child is broken."""
    child = builder.image("bomb", None, [b"layer"])
    builder.data(Digest.of(b"layer")).unlink()
    builder.manifest("bomb", "v1", fill(entry(child), b'{"schemaVersion":2,"manifests":[', b"]}"))


def many_missing_children(builder: StorageBuilder) -> None:
    entries = [entry(f"sha256:{number:064x}") for number in range(40_000)]
    raw = b'{"schemaVersion":2,"manifests":[%b]}' % b",".join(entries)
    builder.manifest("bomb", "v1", raw)


def levels(builder: StorageBuilder, leaf: Digest) -> None:
    """A thousand indexes, each of which lists the next one twice."""
    raw = builder.data(leaf).read_bytes()
    for _ in range(1_000):
        raw = index_manifest([raw, raw], kind="oci")
        builder.manifest("bomb", None, raw)
    builder.manifest("bomb", "v1", index_manifest([raw, raw], kind="oci"))


def deep_graph(builder: StorageBuilder) -> None:
    levels(builder, builder.image("bomb", None, [b"layer"], kind="oci"))


def broken_deep_graph(builder: StorageBuilder) -> None:
    leaf = builder.image("bomb", None, [b"layer"], kind="oci")
    levels(builder, leaf)
    builder.data(Digest.of(b"layer")).unlink()


def wide_and_deep_broken_graph(builder: StorageBuilder) -> None:
    """Thousands of entries of one child, which is a thousand levels deep and broken."""
    leaf = builder.image("bomb", None, [b"layer"], kind="oci")
    levels(builder, leaf)
    builder.data(Digest.of(b"layer")).unlink()
    top = Digest.parse(
        (builder.v2 / "repositories/bomb/_manifests/tags/v1/current/link").read_text()
    )
    builder.manifest("bomb", "v1", fill(entry(top), b'{"schemaVersion":2,"manifests":[', b"]}"))


BOMBS: dict[Callable[[StorageBuilder], None], str] = {
    too_large: "invalid-manifest",
    one_byte_too_large: "invalid-manifest",
    deep_json: "invalid-manifest",
    many_layers: "missing-blob",
    many_foreign_layers: "foreign-layer",
    many_schema1_layers: "missing-blob",
    many_children: "missing-blob",
    many_missing_children: "missing-child",
    deep_graph: "nested-index",
    broken_deep_graph: "missing-blob",
    wide_and_deep_broken_graph: "missing-blob",
}


def limit_cpu() -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))


@pytest.mark.parametrize("command", ["check", "export"])
@pytest.mark.parametrize("bomb", BOMBS, ids=lambda bomb: bomb.__name__)
def test_a_bomb_gets_its_verdict_in_bounded_time_and_memory(
    bomb: Callable[[StorageBuilder], None], command: str, tmp_path: Path
) -> None:
    builder = StorageBuilder(tmp_path / "registry")
    builder.image("good", "v1", [b"fine"])
    bomb(builder)
    code = (
        "import sys, time; from exporter.cli.app import command_line\n"
        "try: command_line()(prog_name='skopeo-dir')\n"
        "finally:\n"
        # Not getrusage: its memory includes the process that we were forked from.
        "  peak = open('/proc/self/status').read().split('VmHWM:')[1].split()[0]\n"
        "  print(peak, time.process_time(), file=sys.stderr)"
    )
    out = [str(tmp_path / "out")] if command == "export" else []

    done = subprocess.run(
        [sys.executable, "-c", code, command, str(builder.root), *out, "--untagged", "--json"],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=limit_cpu,
    )

    *_, usage = done.stderr.splitlines()
    kilobytes, seconds = usage.split()
    print(f"{command} {bomb.__name__}: {float(seconds):.2f} s, {int(kilobytes) // 1024} MiB")  # noqa: T201
    assert int(kilobytes) * 1024 < MEMORY
    rows = {row.get("name"): row for row in map(orjson.loads, done.stdout.splitlines())}
    if command == "check":
        assert (rows["bomb:v1"]["verdict"], rows["good:v1"]["verdict"]) == (BOMBS[bomb], "ok")
    else:
        assert "good:v1" in rows
