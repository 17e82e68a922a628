"""The tree of errors. Each ends the run with its own exit code and says what to do.

```
SkopeoDirError
├── UsageError                   2   the command line, OUT, or this machine cannot do what was asked
├── SourceError                  3   the source is not a registry, or is damaged as a whole
├── PermanentDestinationError    4   authentication, denied, quota, TLS: trying again will not help
├── TemporaryDestinationError    5   unreachable, overloaded, cut off: trying again may help
├── LockedError                  6   another run is writing to the same OUT
├── NoSpaceError                 7   no bytes or no inodes left
└── Interrupted            128 + n   signal n arrived
```

A failed image is not an error of the run: it is a value in the summary, and the exit code is 1.
The exit codes are a public contract (README, "Exit codes").
"""

EXIT_OK = 0
EXIT_SOME_FAILED = 1


class SkopeoDirError(Exception):
    """A run that cannot go on.

    Args:
        message: One sentence that says what is wrong, without a full stop at its end.
        hint: What the user can do about it; empty if there is nothing to add.
    """

    exit_code: int = EXIT_SOME_FAILED

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(SkopeoDirError):
    """The command line, OUT, or this machine cannot do what was asked."""

    exit_code = 2


class SourceError(SkopeoDirError):
    """The source is not a registry, or is damaged as a whole."""

    exit_code = 3


class DestinationError(SkopeoDirError):
    """The destination did not do what it was asked to; one of the two classes below."""


class PermanentDestinationError(DestinationError):
    """The destination said no, and will say no again: authentication, denied, quota, TLS."""

    exit_code = 4


class TemporaryDestinationError(DestinationError):
    """The destination is unreachable or overloaded; another try may succeed.

    Args:
        message: See `SkopeoDirError`.
        hint: See `SkopeoDirError`.
        retry_after_seconds: What the destination's Retry-After header asked for; None if silent.
    """

    exit_code = 5

    def __init__(
        self, message: str, *, hint: str = "", retry_after_seconds: float | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.retry_after_seconds = retry_after_seconds


class LockedError(SkopeoDirError):
    """Another run holds the lock on OUT."""

    exit_code = 6


class NoSpaceError(SkopeoDirError):
    """The file system of OUT has no bytes, no inodes, or no quota left."""

    exit_code = 7


class Interrupted(SkopeoDirError):  # noqa: N818 - as KeyboardInterrupt, it is no error of anyone
    """A signal asked the run to end.

    Args:
        signal_number: Which signal: 2 (INT) gives exit code 130, 15 (TERM) gives 143.
    """

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"interrupted by signal {signal_number}")
        self.exit_code = 128 + signal_number
