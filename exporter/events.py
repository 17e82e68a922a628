"""What happens while a verb works, told to whoever listens. Silent by default.

Each event is a frozen record; `--json` prints it as a line whose `message_type` is the class name
in lower case with underscores. The fields are public: add some, never change one.
"""

import re
from collections.abc import Callable
from typing import NamedTuple, get_args

import orjson


class Started(NamedTuple):
    """A verb knows how much there is to do.

    Attributes:
        verb: `check`, `hash`, `export`, `push` or `verify`.
        images: How many images (blobs, for `hash`) it is about.
    """

    verb: str
    images: int


class Hashed(NamedTuple):
    """A blob was read to its end.

    Attributes:
        digest: Its name.
        right: Whether its content has that digest.
    """

    digest: str
    right: bool


class Checked(NamedTuple):
    """What is to be said of an image of the registry.

    Attributes:
        name: `repository:tag`.
        digest: What the tag's link file names; empty if that cannot be read.
        verdict: The gravest of the findings, or `ok`.
        migrates: Whether the image arrives at the destination all the same.
        findings: Each with `verdict`, `file` (relative to docker/registry/v2), `message` and
            `remedy`.
        whole_platforms: Of an index that is not whole: the platforms that are.
        broken_platforms: The platforms that are not.
    """

    name: str
    digest: str
    verdict: str
    migrates: bool
    findings: tuple[dict[str, str], ...] = ()
    whole_platforms: tuple[str, ...] = ()
    broken_platforms: tuple[str, ...] = ()


class Unpacking(NamedTuple):
    """Blobs are about to be written out of an archive.

    Attributes:
        archive: What the user calls it.
        blobs: How many; None if that is not known before all is read.
        size: Bytes that they need; if `blobs` is None, the least that they can be.
        inodes: Files and directories that they need; None if not known.
        free: Bytes that the file system of OUT has.
    """

    archive: str
    blobs: int | None
    size: int
    inodes: int | None
    free: int


class Unpacked(NamedTuple):
    """A blob was written out of an archive, and its digest was right.

    Attributes:
        digest: What it is.
        size: Its bytes.
    """

    digest: str
    size: int


class Linking(NamedTuple):
    """How the registry's files will come into the images.

    Attributes:
        mode: `auto` (hard links), `hardlink`, `reflink`, `copy` or `symlink`.
        reason: Why it is not what comes first; empty if it is, or was asked for.
    """

    mode: str
    reason: str


class Exported(NamedTuple):
    """An image is whole in OUT.

    Attributes:
        name: `repository:tag`.
        digest: Of its manifest.
        status: `made`, `replaced` (the tag had moved, or files were not right) or `unchanged`.
        files: Files that the image consists of, `version` apart.
        size: Bytes of the image, shared ones included.
    """

    name: str
    digest: str
    status: str
    files: int
    size: int


class Deleted(NamedTuple):
    """An image that the source no longer has is gone from OUT.

    Attributes:
        name: `repository:tag`.
    """

    name: str


class Pushed(NamedTuple):
    """An image is at the destination.

    Attributes:
        name: `repository:tag`.
        destination: `host/repository:tag`.
        digest: What the destination has now; the source's, unless it had to be converted.
        converted_from: The source's digest then; empty otherwise.
        status: `pushed`, or `present` (it was there before).
        mounted: Blobs taken over from another repository of the destination instead of sent.
        tries: How many times skopeo was started.
        seconds: What the tries took, waits between them left out.
        bytes_sent: Of configs and layers that were uploaded.
        bytes_mounted: Of those that were mounted.
        bytes_present: Of those that the repository had already.
    """

    name: str
    destination: str
    digest: str
    status: str
    converted_from: str = ""
    mounted: int = 0
    tries: int = 0
    seconds: float = 0.0
    bytes_sent: int = 0
    bytes_mounted: int = 0
    bytes_present: int = 0


class Skipped(NamedTuple):
    """An image was left out, as asked.

    Attributes:
        name: `repository:tag`.
        reason: One sentence.
    """

    name: str
    reason: str


class Verified(NamedTuple):
    """The destination answered for an image and every manifest below it.

    Attributes:
        name: `repository:tag`.
        destination: `host/repository:tag`.
        digest: The same at both ends.
        manifests: How many digests were compared, children included.
    """

    name: str
    destination: str
    digest: str
    manifests: int


class Failed(NamedTuple):
    """An image could not be exported, deleted, pushed or verified; the others go on.

    Attributes:
        verb: `export`, `push` or `verify`.
        name: `repository:tag`.
        error: A word for scripts: a verdict of `check`, or `link`, `source`, `temporary`,
            `permanent`, `missing`, `different`, `foreign` (not deleted: it holds what we did not
            make) or `earlier` (an image that it needs has failed).
        message: One sentence.
        digest: What it should be; empty if that is not known.
        destination: Of a push: `host/repository:tag`; empty if it has no name there.
        tries: Of a push: how many times skopeo was started.
        seconds: Of a push: what the tries took.
    """

    verb: str
    name: str
    error: str
    message: str
    digest: str = ""
    destination: str = ""
    tries: int = 0
    seconds: float = 0.0


Event = (
    Started
    | Unpacking
    | Unpacked
    | Hashed
    | Checked
    | Linking
    | Exported
    | Deleted
    | Pushed
    | Skipped
    | Verified
    | Failed
)
Observer = Callable[[Event], None]
_MESSAGE_TYPES = {
    kind: re.sub(r"(?<!^)(?=[A-Z])", "_", kind.__name__).lower() for kind in get_args(Event)
}


def json_line(event: Event) -> bytes:
    """Return an event as one line of JSON."""
    values = {"message_type": _MESSAGE_TYPES[type(event)], **event._asdict()}
    return orjson.dumps(values, option=orjson.OPT_APPEND_NEWLINE)


def silent(_event: Event) -> None:
    """Ignore everything."""
