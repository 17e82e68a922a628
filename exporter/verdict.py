"""Verdicts: what can be said of a tag, in words that are also the JSON output.

The vocabulary is public: scripts match on it. Add words, never change one.
"""

from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """What is wrong with a tag; a tag without a problem is `OK`."""

    OK = "ok"
    MISSING_BLOB = "missing-blob"
    MISSING_MANIFEST = "missing-manifest"
    WRONG_SIZE = "wrong-size"
    WRONG_DIGEST = "wrong-digest"
    EMPTY_LINK = "empty-link"
    INVALID_LINK = "invalid-link"
    INVALID_MANIFEST = "invalid-manifest"
    INVALID_NAME = "invalid-name"


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong, the file where it was seen, and what it means.

    Attributes:
        verdict: Which kind.
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
