"""Verdicts: what can be said of a tag, in words that are also the JSON output.

The vocabulary is public: scripts match on it. Add words, never change one. README, "Verdicts",
has the same table.
"""

from enum import StrEnum
from typing import NamedTuple


class Verdict(StrEnum):
    """What is to be said of a tag. One of which nothing is to be said is `OK`."""

    OK = "ok"

    SCHEMA1 = "schema1"
    NESTED_INDEX = "nested-index"
    FOREIGN_LAYER = "foreign-layer"
    MISSTATED_SIZE = "misstated-size"

    UNSUPPORTED_DIGEST = "unsupported-digest"

    MISSING_BLOB = "missing-blob"
    MISSING_MANIFEST = "missing-manifest"
    MISSING_CHILD = "missing-child"
    WRONG_SIZE = "wrong-size"
    WRONG_DIGEST = "wrong-digest"
    EMPTY_LINK = "empty-link"
    INVALID_LINK = "invalid-link"
    INVALID_MANIFEST = "invalid-manifest"
    INVALID_NAME = "invalid-name"
    CHANGED_DURING_SCAN = "changed-during-scan"

    @property
    def migrates(self) -> bool:
        """Whether the image arrives at the destination all the same."""
        return self in _MIGRATES

    @property
    def exports(self) -> bool:
        """Whether the image can be a `dir:` image, whatever becomes of it afterwards."""
        return self in _MIGRATES or self is Verdict.UNSUPPORTED_DIGEST

    @property
    def remedy(self) -> str:
        """What the operator can do about it; empty if there is nothing to do."""
        return _REMEDIES[self]


_MIGRATES = frozenset(
    {
        Verdict.OK,
        Verdict.SCHEMA1,
        Verdict.NESTED_INDEX,
        Verdict.FOREIGN_LAYER,
        Verdict.MISSTATED_SIZE,
    }
)
_RESTORE = "restore the file from a backup, or push the image again and delete the tag here"
_REMEDIES = {
    Verdict.OK: "",
    Verdict.SCHEMA1: "push converts it to schema 2, under a new digest (--schema1)",
    Verdict.NESTED_INDEX: "push sends the inner indexes first; nothing is to be done",
    Verdict.FOREIGN_LAYER: "it stays where its urls point; Harbor takes that, docker-registry "
    "if its setting validation.manifests.urls.allow does",
    Verdict.MISSTATED_SIZE: "it arrives as it is; some clients refuse to pull it: build it again",
    Verdict.UNSUPPORTED_DIGEST: "skopeo cannot push sha512 blobs: build the image again",
    Verdict.MISSING_BLOB: _RESTORE,
    Verdict.MISSING_MANIFEST: "restore the file from a backup, or delete the tag",
    Verdict.MISSING_CHILD: "push the platforms that are whole by digest (list --untagged)",
    Verdict.WRONG_SIZE: _RESTORE,
    Verdict.WRONG_DIGEST: _RESTORE,
    Verdict.EMPTY_LINK: "look the digest up in tags/<tag>/index/ and write it into the link file",
    Verdict.INVALID_LINK: "look the digest up in tags/<tag>/index/ and write it into the link file",
    Verdict.INVALID_MANIFEST: "build the image again",
    Verdict.INVALID_NAME: "copy it under another name with a registry service, or delete it",
    Verdict.CHANGED_DURING_SCAN: "run it again, best while the registry is read-only",
}


class Problem(NamedTuple):
    """One thing to be said of an image, the file where it was seen, and what it means.

    Attributes:
        verdict: Which kind; not every kind is an obstacle.
        path: The file concerned, relative to the storage root (`docker/registry/v2`); empty if
            no single file is.
        message: One sentence for a person.
    """

    verdict: Verdict
    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.verdict}: {self.message}"


class ProblemError(Exception):
    """Carries one problem from where it was seen to where it becomes a value.

    Attributes:
        problem: What is wrong.
    """

    def __init__(self, verdict: Verdict, path: str, message: str) -> None:
        super().__init__(message)
        self.problem = Problem(verdict, path, message)
