"""Whatever bytes a storage holds, no path leaves it or OUT, and bounds hold."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from exporter import dirlayout, manifest
from exporter.manifest import ManifestError
from exporter.storage import Storage, TaggedImage
from tests.builders import StorageBuilder

FEW, MANY = 300, 10_000

names = st.one_of(
    st.binary(min_size=1, max_size=40),
    st.text(min_size=1, max_size=40).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.sampled_from(
        [b"..", b".", b"-v", b"--help", b"a:b", b"a@b", b"\n", b"v1\n", b"localhost:5000"]
    ),
).filter(lambda name: b"/" not in name and b"\0" not in name and name not in {b".", b".."})
links = st.one_of(
    st.binary(max_size=200),
    st.sampled_from(
        [b"sha256:../../../etc/passwd", b"sha256:" + b"a" * 64, b"sha512:" + b"/" * 128]
    ),
    st.from_regex(rb"sha(256|384|512):[0-9a-fA-F./\n-]{60,130}", fullmatch=True),
)


def look(root: Path, repository: bytes, tag: bytes, link: bytes) -> None:
    """Put these bytes into a storage, and hold all that is made of them to the law."""
    shutil.rmtree(root, ignore_errors=True)
    v2 = root / "docker/registry/v2"
    (v2 / "blobs").mkdir(parents=True)
    path = os.path.join(os.fsencode(v2 / "repositories"), repository, b"_manifests/tags", tag)
    os.makedirs(path + b"/current")
    Path(os.fsdecode(path), "current/link").write_bytes(link)
    storage = Storage(str(v2))
    for found in storage.tags():
        if isinstance(found, TaggedImage):
            directory = dirlayout.image_directory("/out", found.name)
            assert os.path.normpath(directory).startswith("/out/")
            assert os.path.normpath(storage.path(found.digest)).startswith(f"{v2}/blobs/sha")
            assert not str(found.name).startswith("-")
            assert str(found.name).isascii()
        else:
            assert orjson.dumps(found.name)
            assert found.name.isprintable()


def read(content: bytes) -> None:
    try:
        manifest.parse(content)
    except ManifestError as error:
        sentence = str(error)
    else:
        return
    assert 0 < len(sentence) < 300


def mutated() -> st.SearchStrategy[bytes]:
    """Manifests in which one value was replaced by any JSON value."""
    digest = "sha256:" + "a" * 64
    entry = {"mediaType": manifest.OCI_MANIFEST, "digest": digest, "size": 1}
    whole = {"schemaVersion": 2, "config": entry, "layers": [entry], "manifests": None}
    json = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=8,
    )
    keys = st.sampled_from(
        ["schemaVersion", "mediaType", "config", "layers", "manifests", "fsLayers"]
    )
    return st.dictionaries(keys, json | st.lists(st.dictionaries(
        st.sampled_from([*entry, "urls", "platform", "blobSum"]), json | st.just(digest)
    ))).map(lambda change: orjson.dumps(whole | change, option=orjson.OPT_PASSTHROUGH_DATETIME)
        if all(-(2**63) <= n < 2**64 for n in _integers(change)) else b"{}")  # fmt: skip


def _integers(value: object) -> list[int]:
    if isinstance(value, dict):
        return [n for each in value.values() for n in _integers(each)]
    if isinstance(value, list):
        return [n for each in value for n in _integers(each)]
    return [value] if isinstance(value, int) else []


@pytest.mark.parametrize("examples", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])
def test_no_name_and_no_link_leads_out_of_the_registry_or_out(
    examples: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("hostile") / "tree"
    settings(max_examples=examples)(given(names, names, links)(
        lambda repository, tag, link: look(root, repository, tag, link)
    ))()  # fmt: skip


@pytest.mark.parametrize("examples", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])
def test_any_bytes_are_a_manifest_or_one_clear_error(examples: int) -> None:
    content = st.binary(max_size=300) | mutated()
    checks = [HealthCheck.too_slow]
    settings(max_examples=examples, suppress_health_check=checks)(given(content)(read))()


def large(kind: str) -> bytes:
    """A manifest of 4 MiB that is all descriptors."""
    entry = b'{"digest":"sha256:%064x","size":1}'
    count = manifest.MAX_SIZE // (len(entry % 0) + 1) - 4
    body = b",".join(entry % number for number in range(count))
    if kind == "index":
        return b'{"schemaVersion":2,"manifests":[%s]}' % body
    return b'{"schemaVersion":2,"config":%s,"layers":[%s]}' % (entry % 0, body)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(lambda: large("image"), id="45,000 layers"),
        pytest.param(lambda: large("index"), id="45,000 children"),
        pytest.param(lambda: b"[" * 2_000 + b"]" * 2_000, id="nested 2,000 deep"),
        pytest.param(lambda: b'{"a":' * 700_000, id="4 MiB of depth"),
        pytest.param(lambda: b" " * (manifest.MAX_SIZE + 1), id="over 4 MiB"),
    ],
)
def test_the_worst_manifests_stay_within_128_mib(content: object, tmp_path: Path) -> None:
    assert callable(content)
    StorageBuilder(tmp_path).manifest("app", "v1", content())
    code = (
        "import sys; from exporter.check import check; from exporter.storage import Storage;"
        "found = check(Storage.open(sys.argv[1])).failed;"
        # Not getrusage: its figure includes the process that we were forked from.
        "print(found, open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    failed, kibibytes = map(int, done.stdout.split())
    assert (failed, kibibytes < 128 * 1024) == (1, True)
