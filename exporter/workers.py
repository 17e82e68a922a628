"""Threads that work off a `Schedule`: retries, backing off, and ending in order on a signal."""

import threading
import time
from collections.abc import Callable
from heapq import heappop, heappush

from exporter.errors import Interrupted, SkopeoDirError, TemporaryDestinationError
from exporter.retry import Retry
from exporter.schedule import Schedule

_FAREWELL_SECONDS = 2.0


# A signal that arrives just before the main thread blocks does not wake it: Python sees it later.
_SIGNAL_SECONDS = 1.0

Attempt = Callable[[int], SkopeoDirError | None]
"""Tries one image and returns what went wrong, or None. Called by many threads at once."""

Report = Callable[[int, SkopeoDirError | None, list[int]], None]
"""Is told how an image ended and which images can never run now. Called by one thread at a time."""


class Workers:
    """Works off a schedule with up to `jobs` threads.

    When the destination pushes back with a temporary error, fewer images run at a time: half as
    many, then slowly one more, as TCP does. Meanwhile the failed image lets go of its blobs.

    Args:
        schedule: Which image may start when.
        attempt: Does the work.
        report: Is told the outcome.
        jobs: Most images at a time.
        retry: When to try again.
        fail_fast: Start nothing more once an image has failed; what runs may end.
    """

    def __init__(
        self,
        schedule: Schedule,
        attempt: Attempt,
        report: Report,
        *,
        jobs: int,
        retry: Retry,
        fail_fast: bool = False,
    ) -> None:
        self._schedule = schedule
        self._attempt = attempt
        self._report = report
        self._jobs = jobs
        self._retry = retry
        self._fail_fast = fail_fast
        self._closing = False
        self._changed = threading.Condition()  # its lock is reentrant
        self._limit = float(jobs)
        self._running = 0
        self._failures: dict[int, int] = {}
        self._delayed: list[tuple[float, int]] = []  # heap of (when to resume, image)
        self._ended: BaseException | None = None

    def run(self, *, stop: Callable[[int], None]) -> None:
        """Return when every image has ended, or none is to be started any more.

        Args:
            stop: Ends what the attempts are doing, given a signal number; may block until done.

        Raises:
            Interrupted: A signal was raised as this in the calling thread; nothing runs any more,
                but for a thread that waits for an answer and will do nothing with it.
            SkopeoDirError: An attempt could not go on at all; nothing runs any more.
        """
        threads = [threading.Thread(target=self._work, daemon=True) for _ in range(self._jobs)]
        try:
            for thread in threads:
                thread.start()
            with self._changed:
                while not self._over():
                    self._changed.wait(_SIGNAL_SECONDS)
        except Interrupted as error:
            self._end(error)
            stop(error.exit_code - 128)
        finally:
            # After a signal, whoever waits for an answer that does not come is left behind.
            is_hasty = isinstance(self._ended, Interrupted)
            deadline = time.monotonic() + _FAREWELL_SECONDS
            for thread in threads:
                if thread.ident is not None:  # the signal may have come before it was started
                    thread.join(max(0.0, deadline - time.monotonic()) if is_hasty else None)
        if self._ended is not None:
            raise self._ended

    def settle(self, blob: int) -> None:
        """Note that a blob is at the destination, while its image is still running; any thread."""
        with self._changed:
            self._schedule.settle(blob)
            self._changed.notify_all()

    def slow_down(self) -> None:
        """Let half as many images run at a time, at least one; any thread."""
        with self._changed:
            self._limit = max(self._limit / 2, 1.0)

    def _over(self) -> bool:
        return (
            self._schedule.done or self._ended is not None or (self._closing and self._running == 0)
        )

    def _work(self) -> None:
        try:
            while (image := self._claim()) is not None:
                self._finish(image, self._attempt(image))
        except BaseException as error:  # noqa: BLE001 - it is raised again by `run`
            self._end(error)

    def _end(self, error: BaseException) -> None:
        with self._changed:
            self._ended = self._ended or error
            self._changed.notify_all()

    def _claim(self) -> int | None:
        """Wait for an image that may start; None if there will be none."""
        with self._changed:
            while not (self._over() or self._closing):
                now = time.monotonic()
                while self._delayed and self._delayed[0][0] <= now:
                    self._schedule.resume(heappop(self._delayed)[1])
                if self._running < int(self._limit):
                    image = self._schedule.next()
                    if image is not None:
                        self._running += 1
                        return image
                self._changed.wait(self._delayed[0][0] - now if self._delayed else None)
            return None

    def _finish(self, image: int, error: SkopeoDirError | None) -> None:
        with self._changed:
            self._running -= 1
            if error is None:
                self._limit = min(self._limit + 1 / self._limit, float(self._jobs))
                self._schedule.succeed(image)
                self._report(image, None, [])
            elif isinstance(error, TemporaryDestinationError) and self._may_retry(image):
                self.slow_down()
                wait = self._retry.wait_seconds(self._failures[image], error)
                self._schedule.suspend(image)
                heappush(self._delayed, (time.monotonic() + wait, image))
            else:
                self._closing = self._closing or self._fail_fast
                self._report(image, error, self._schedule.fail(image))
            self._changed.notify_all()

    def _may_retry(self, image: int) -> bool:
        self._failures[image] = self._failures.get(image, 0) + 1
        return self._failures[image] < self._retry.tries and not self._closing
