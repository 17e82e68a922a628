"""Digests: the only names by which content is known.

Spec: OCI image-spec, descriptor.md, "Digests"; opencontainers/go-digest, algorithm.go.
"""

import hashlib
import re
from typing import Self

# Registered algorithms and the length of their hexadecimal part.
HEX_LENGTHS = {"sha256": 64, "sha384": 96, "sha512": 128}

_DIGEST = re.compile(r"(?:sha256:[0-9a-f]{64}|sha384:[0-9a-f]{96}|sha512:[0-9a-f]{128})")


class Digest(str):
    """`<algorithm>:<hex>` with a registered algorithm and lower-case hex of the right length.

    Holding one is the proof that it was validated: it can neither leave a directory when it is
    made into a path nor start with a dash.
    """

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return `text` as a digest.

        Raises:
            ValueError: `text` is not a digest; the message quotes at most 80 characters of it.
        """
        if _DIGEST.fullmatch(text) is None:
            raise ValueError(f"not a digest: {text[:80]!r}")
        return cls(text)

    @classmethod
    def of(cls, content: bytes, *, algorithm: str = "sha256") -> Self:
        """Return the digest of `content`."""
        return cls(f"{algorithm}:{getattr(hashlib, algorithm)(content).hexdigest()}")

    @property
    def algorithm(self) -> str:
        """`sha256`, `sha384` or `sha512`."""
        return self[:6]  # all three have six characters

    @property
    def hex(self) -> str:
        """The part behind the colon."""
        return self[7:]
