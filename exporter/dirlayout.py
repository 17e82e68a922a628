r"""OUT on disk: plain skopeo `dir:` images, and a directory of our own.

```
OUT/
├── library/alpine:3.19/         one image, exactly as skopeo writes a `dir:`
│   ├── manifest.json
│   ├── version                  "Directory Transport Version: 1.1\n"
│   ├── <hex>                    config and layers, named by digest
│   └── <hex>.manifest.json      children of an index
└── .skopeo-dir/                 ours
    ├── images.jsonl             every image that OUT should have: name and digest
    ├── made.json                what the last export left, so that the next need not look inside
    ├── lock
    ├── results-*.jsonl, failed.txt   what the pushes did (`results`)
    ├── version                  the file that every image's `version` is a link of
    ├── building/                images being built; renamed when whole
    ├── relay/                   what images are linked to where they cannot be to the registry
    └── unpacked/                blobs out of an archive, while it is exported
```

Spec: containers/image, directory/directory_transport.go (manifestPath, layerPath, versionPath).
"""

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import orjson

from exporter import files, manifest
from exporter.digest import HEX_LENGTHS, Digest
from exporter.errors import UsageError
from exporter.manifest import Descriptor, Manifest, ManifestError
from exporter.reference import ImageName
from exporter.verdict import Problem, ProblemError, Verdict

VERSION = b"Directory Transport Version: 1.1\n"
MANIFEST = "manifest.json"
VERSION_FILE = "version"
WORK = ".skopeo-dir"
BUILDING = "building"
RELAYS = "relay"
_NAME_MAX = 255
_OURS = re.compile(
    r"version|manifest\.json|(?:sha(?:384|512)-)?[0-9a-f]{64,128}|[0-9a-f]{64,128}\.manifest\.json"
)


def child_manifest(digest: Digest) -> str:
    """Return the file name of a manifest that an index lists."""
    return f"{digest.hex}.manifest.json"


def blob(digest: Digest) -> str:
    """Return the file name of a config or layer, as every skopeo released so far looks for it."""
    return digest.hex


def blob_names(digest: Digest) -> tuple[str, ...]:
    """Return every file name of a config or layer.

    Spec: image/v5.40.0 of container-libs names what is not sha256 `<algorithm>-<hex>`, and does
    not fall back to the name that all versions before it use.
    """
    if digest.startswith("sha256:"):
        return (digest[7:],)
    return (digest.hex, f"{digest.algorithm}-{digest.hex}")


def image_directory(out: str, name: ImageName) -> str:
    """Return where an image lies.

    Raises:
        ValueError: Its last component would be longer than a file name can be (255 bytes).
    """
    text = str(name)
    if len(text) - text.rfind("/") - 1 > _NAME_MAX:
        raise ValueError(f"{text.rpartition('/')[2][:80]!r}… is longer than a file name can be")
    return f"{out}/{text}"


def work_directory(out: str) -> str:
    """Return the directory of ours in OUT."""
    return f"{out}/{WORK}"


def relays(out: str) -> str:
    """Return the directory of relays, see `link`."""
    return f"{work_directory(out)}/{RELAYS}"


def lock_file(out: str) -> str:
    """Return the file whose lock says that one run at a time writes to OUT."""
    return f"{work_directory(out)}/lock"


def make_work_directory(out: str) -> None:
    """Make the directory of ours in OUT, if it is not there; `out` is, whoever made it.

    Raises:
        SkopeoDirError: It cannot be made.
    """
    try:
        os.makedirs(work_directory(out), exist_ok=True)
    except OSError as error:
        raise files.failure(error, out) from None


def prepare(out: str) -> None:
    """Make OUT and the directory of ours in it, if they are not there.

    Raises:
        UsageError: `out` is not a directory, or holds something that we did not make.
        SkopeoDirError: It cannot be made.
    """
    work = work_directory(out)
    try:
        if os.path.isdir(out) and not os.path.isdir(work) and os.listdir(out):
            raise UsageError(
                f"{out} holds something else",
                hint="give an empty directory, or one that is not there",
            )
        for name in (BUILDING, RELAYS):
            os.makedirs(f"{work}/{name}", exist_ok=True)
        version = f"{work}/{VERSION_FILE}"
        if not os.path.exists(version):
            files.write_atomically(version, VERSION)
    except FileExistsError:
        raise UsageError(f"{out} is not a directory") from None
    except OSError as error:
        raise files.failure(error, out) from None


def staged(out: str) -> Iterator[ImageName]:
    """Yield the name of every image directory below OUT, in no order; others are passed over.

    Raises:
        UsageError: OUT is not a directory.
    """
    pending = [""]
    while pending:
        prefix = pending.pop()
        try:
            with os.scandir(f"{out}/{prefix}") as entries:
                names = [e.name for e in entries if e.is_dir(follow_symlinks=False)]
        except OSError as error:
            path = f"{out}/{prefix}".rstrip("/")
            raise UsageError(f"{path} cannot be read: {error.strerror}") from None
        for name in names:
            if ":" in name:
                try:
                    yield ImageName.parse(f"{prefix}{name}")
                except ValueError:
                    continue
            elif name != WORK:
                pending.append(f"{prefix}{name}/")


def images(out: str) -> dict[ImageName, Digest]:
    """Return every image that OUT has or should have, sorted by name, and its digest.

    The digest is the one that the registry's link file named, from the record of the export. For
    an image without a record (skopeo wrote it) it is that of the bytes of its `manifest.json`;
    without such a file it is not an image.

    Raises:
        UsageError: OUT is not a directory, the record is damaged, or there is no image at all.
    """
    found = read_record(out)
    for name in staged(out):
        if name not in found:
            try:
                found[name] = Digest.of(_read(f"{image_directory(out, name)}/{MANIFEST}"))
            except OSError:
                continue
    if not found:
        raise UsageError(f"{out} holds no images", hint="make them with: skopeo-dir export")
    return dict(sorted(found.items(), key=lambda item: str(item[0])))


def foreign_files(directory: str) -> list[str]:
    """Return the paths in an image directory that no export puts there, sorted.

    Raises:
        FileNotFoundError: There is no such directory.
        NotADirectoryError: It is something else.
    """
    if os.path.islink(directory):
        raise NotADirectoryError(directory)
    with os.scandir(directory) as entries:
        return sorted(
            entry.path
            for entry in entries
            if _OURS.fullmatch(entry.name) is None or entry.is_dir(follow_symlinks=False)
        )


def blobs(out: str) -> dict[Digest, str]:
    """Return a file of OUT for every digest that some image has, going by file names.

    What the files hold may be something else by now: whoever uses one has to hash it.

    Raises:
        UsageError: OUT is not a directory, or the record is damaged.
    """
    found: dict[Digest, str] = {}
    record = read_record(out)
    for name in staged(out):
        directory = image_directory(out, name)
        for file_name in os.listdir(directory):
            if file_name == MANIFEST:
                digest = record.get(name)
            else:
                digest = _of_hex(file_name.removesuffix(f".{MANIFEST}"))
            if digest is not None:
                found[digest] = f"{directory}/{file_name}"
    return found


def _of_hex(hexadecimal: str) -> Digest | None:
    algorithm = {length: name for name, length in HEX_LENGTHS.items()}.get(len(hexadecimal))
    try:
        return Digest.parse(f"{algorithm}:{hexadecimal}")
    except ValueError:
        return None


def read_manifest(directory: str, digest: Digest, *, root: Digest) -> Manifest:
    """Return a manifest of an image directory: `root` is its `manifest.json`.

    Raises:
        ProblemError: It is missing, or its bytes have another digest than they must have.
    """
    name = MANIFEST if digest == root else child_manifest(digest)
    path = f"{directory}/{name}"
    try:
        content = _read(path)
    except OSError as error:
        reason = "is missing" if isinstance(error, FileNotFoundError) else f"{error.strerror}"
        raise ProblemError(Verdict.MISSING_MANIFEST, path, f"{name} in OUT: {reason}") from None
    too_large = len(content) > manifest.MAX_SIZE  # and so not read to its end
    if not too_large and Digest.of(content, algorithm=digest.algorithm) != digest:
        message = f"{name} in OUT is not {digest}: its bytes were changed"
        raise ProblemError(Verdict.WRONG_DIGEST, path, message)
    try:
        return manifest.parse(content)
    except ManifestError as error:
        message = f"the manifest {digest} cannot be used: {error}"
        raise ProblemError(Verdict.INVALID_MANIFEST, path, message) from None


def blob_problems(directory: str, blobs: Iterable[Descriptor]) -> list[Problem]:
    """Return what is wrong with the configs and layers of an image directory, by their sizes.

    Skopeo does not look: what the destination has already is never read (copy/copy.go).
    """
    problems: list[Problem] = []
    for expected in blobs:
        path = f"{directory}/{blob(expected.digest)}"
        try:
            size = os.stat(path).st_size
            # A layer may be whole although its manifest states another size: nobody compares.
            whole = expected.size in {None, size} or _is_whole(path, expected.digest)
        except OSError as error:
            reason = "is missing" if isinstance(error, FileNotFoundError) else f"{error.strerror}"
            message = f"{expected.digest} in OUT: {reason}"
            problems.append(Problem(Verdict.MISSING_BLOB, path, message))
            continue
        if not whole:
            message = f"{expected.digest} in OUT has {size} bytes instead of {expected.size}"
            problems.append(Problem(Verdict.WRONG_SIZE, path, message))
    return problems


def _is_whole(path: str, digest: Digest) -> bool:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, digest.algorithm).hexdigest() == digest.hex


def read_record(out: str) -> dict[ImageName, Digest]:
    """Return what OUT should have: for every image the digest that the registry's link file named.

    A directory of images that skopeo wrote has no record: the result is empty.

    Raises:
        UsageError: The record is damaged.
    """
    path = f"{work_directory(out)}/images.jsonl"
    try:
        with open(path, "rb") as file:
            rows = [orjson.loads(line) for line in file]
        return {ImageName.parse(str(row["name"])): Digest.parse(str(row["digest"])) for row in rows}
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise UsageError(f"{path} is damaged", hint="run the export again") from None


def write_record(out: str, images: Mapping[ImageName, Digest]) -> None:
    """Write what OUT should have, atomically and durably, before the first image is built.

    Raises:
        OSError: It cannot be written.
    """
    rows = sorted((str(name), digest) for name, digest in images.items())
    content = bytearray()  # not a join: as long as one lives, what orjson returns takes kilobytes
    for name, digest in rows:
        content += orjson.dumps({"name": name, "digest": digest}, option=orjson.OPT_APPEND_NEWLINE)
    files.write_atomically(f"{work_directory(out)}/images.jsonl", bytes(content))


class Made(NamedTuple):
    """An image directory as an export left it; its names are the same while this is.

    Attributes:
        digest: Of its manifest.
        inode: Number of the directory.
        changed: When a name in it was last made, removed or renamed, in ns: its ctime, which
            nobody can set.
        files: As `Exported` tells it.
        size: As `Exported` tells it.
    """

    digest: str
    inode: int
    changed: int
    files: int
    size: int


def read_made(out: str, *, of: Mapping[str, str]) -> dict[str, Made]:
    """Return what exports left, by image name; nothing if that was made in another way.

    Args:
        out: The directory of images.
        of: What `write_made` was given.
    """
    try:
        with open(f"{work_directory(out)}/made.json", "rb") as file:
            found = orjson.loads(file.read())
        if found["of"] != of:
            return {}
        return {name: Made(*fields) for name, fields in found["images"].items()}
    except (OSError, ValueError, KeyError, TypeError):
        return {}  # it only saves time


def write_made(out: str, made: Mapping[str, Made], *, of: Mapping[str, str]) -> None:
    """Write what this export leaves; to be called when that would survive a power cut.

    Raises:
        OSError: It cannot be written.
    """
    images = {name: tuple(each) for name, each in made.items()}
    files.write_atomically(
        f"{work_directory(out)}/made.json", orjson.dumps({"of": of, "images": images})
    )


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read(manifest.MAX_SIZE + 1)
