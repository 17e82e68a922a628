"""Names of repositories, tags, images and destinations.

Spec: distribution/reference, regexp.go (v0.6): the grammar of names and tags.
"""

import re
from typing import NamedTuple, NewType, Self

from exporter.digest import Digest

RepositoryName = NewType("RepositoryName", str)
"""Lower-case components joined by `/`, at most 255 characters, no host part."""

Tag = NewType("Tag", str)
"""`\\w[\\w.-]{0,127}`, ASCII only."""

MAX_NAME_LENGTH = 255

_COMPONENT = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_NAME = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*", re.ASCII)
_TAG = re.compile(r"\w[\w.-]{0,127}", re.ASCII)
_HOST = re.compile(
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9a-fA-F:.]+\])(?::[0-9]{1,5})?"
)


def parse_repository_name(text: str) -> RepositoryName:
    """Return `text` as a repository name.

    Raises:
        ValueError: It is not one. A host-like first component (`localhost:5000/foo`), which a
            registry's own grammar lets pass, is refused too: no client could address it.
    """
    if len(text) > MAX_NAME_LENGTH or _NAME.fullmatch(text) is None:
        raise ValueError(f"not a repository name: {text[:80]!r}")
    return RepositoryName(text)


def parse_tag(text: str) -> Tag:
    """Return `text` as a tag.

    Raises:
        ValueError: It is not one.
    """
    if _TAG.fullmatch(text) is None:
        raise ValueError(f"not a tag: {text[:80]!r}")
    return Tag(text)


class ImageName(NamedTuple):
    """What an image is called: `<repository>:<tag>`, or `<repository>@<digest>` if untagged.

    `str()` of it is that text; it is also the image's path below OUT.
    """

    repository: RepositoryName
    reference: Tag | Digest

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the name written as `repository:tag` or `repository@digest`.

        Raises:
            ValueError: The text is neither.
        """
        repository, at, digest = text.partition("@")
        if at:
            return cls(parse_repository_name(repository), Digest.parse(digest))
        repository, colon, tag = text.rpartition(":")
        if not colon:
            raise ValueError(f"no tag in {text[:80]!r}")
        return cls(parse_repository_name(repository), parse_tag(tag))

    def __str__(self) -> str:
        separator = "@" if isinstance(self.reference, Digest) else ":"
        return f"{self.repository}{separator}{self.reference}"


class Destination(NamedTuple):
    """Where images go: `host[:port]`, and a path that is put before every repository name."""

    host: str
    prefix: str = ""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the destination written as `host[:port][/prefix]`, `docker://` before it or not.

        Raises:
            ValueError: The text is no destination. A host without a dot or a port that is not
                `localhost` is refused: skopeo would send the images to docker.io.
        """
        host, _, prefix = text.removeprefix("docker://").rstrip("/").partition("/")
        if _HOST.fullmatch(host) is None:
            raise ValueError(f"not a destination: {text[:80]!r} (expected host[:port][/prefix])")
        if not ("." in host or ":" in host or host == "localhost"):
            raise ValueError(
                f"destination {host!r} needs a port (or skopeo means docker.io/{host})"
            )
        if prefix:
            parse_repository_name(prefix)
        return cls(host, prefix)

    def repository(self, name: RepositoryName) -> RepositoryName:
        """Return what `name` is called at the destination.

        Raises:
            ValueError: It would be longer than 255 characters.
        """
        return parse_repository_name(f"{self.prefix}/{name}") if self.prefix else name

    def __str__(self) -> str:
        return f"{self.host}/{self.prefix}" if self.prefix else self.host
