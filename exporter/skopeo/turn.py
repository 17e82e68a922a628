"""A process that is up already waits for its turn."""

import threading
import time
from typing import Self


class Turn:
    """One of as many turns as a semaphore allows at a time: a context manager. For one thread.

    Args:
        turns: What the turns are counted by.

    Attributes:
        waited_seconds: How long it took until there was one.
    """

    def __init__(self, turns: threading.Semaphore) -> None:
        self._turns = turns
        self._is_on = False
        self.waited_seconds = 0.0

    def __enter__(self) -> Self:
        """Wait for it."""
        started = time.monotonic()
        self._turns.acquire()
        self._is_on = True
        self.waited_seconds = time.monotonic() - started
        return self

    def __exit__(self, *_: object) -> None:
        """End it, if that was not done before."""
        self.end()

    def end(self) -> None:
        """Let another have it; idempotent."""
        if self._is_on:
            self._is_on = False
            self._turns.release()
