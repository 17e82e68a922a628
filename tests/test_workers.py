"""Threads that work off a schedule, tried with attempts that fail as they are told to."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

import pytest

from exporter.errors import (
    Interrupted,
    PermanentDestinationError,
    SkopeoDirError,
    TemporaryDestinationError,
    UsageError,
)
from exporter.retry import Retry
from exporter.schedule import Job, Schedule
from exporter.workers import Attempt, Workers

PATIENCE_SECONDS = 30.0  # how long a test waits for what must come
AT_ONCE = Retry(first_seconds=0.0)
TEMPORARY = TemporaryDestinationError("overloaded")
PERMANENT = PermanentDestinationError("denied")

Outcome = tuple[int, SkopeoDirError | None, list[int]]


def work(
    jobs: Sequence[Job] | int,
    attempt: Attempt,
    *,
    at_a_time: int = 4,
    retry: Retry = AT_ONCE,
    stop: Callable[[int], None] = lambda _number: None,
) -> list[Outcome]:
    """Run to the end and return what was reported, in order. No thread may be left over."""
    if isinstance(jobs, int):
        jobs = [Job(blobs=())] * jobs
    outcomes: list[Outcome] = []
    before = threading.active_count()
    workers = Workers(
        Schedule(jobs, [1] * 9),
        attempt,
        lambda *outcome: outcomes.append(outcome),
        jobs=at_a_time,
        retry=retry,
    )
    try:
        workers.run(stop=stop)
    finally:
        assert threading.active_count() == before
    return outcomes


class Failing:
    """An attempt that returns the errors it was given, one a try, and then succeeds."""

    def __init__(self, *errors: SkopeoDirError) -> None:
        self._errors = iter(errors)
        self.times: list[float] = []

    def __call__(self, image: int) -> SkopeoDirError | None:
        self.times.append(time.monotonic())
        return next(self._errors, None)


class Crowd:
    """An attempt that counts how many are inside. `tell(number)` is run by each as it comes in."""

    def __init__(self, tell: Callable[["Crowd", int], SkopeoDirError | None]) -> None:
        self.changed = threading.Condition()
        self.entries = self.inside = 0
        self._tell = tell

    def __call__(self, image: int) -> SkopeoDirError | None:
        with self.changed:
            self.entries += 1
            self.inside += 1
            self.changed.notify_all()
            try:
                return self._tell(self, self.entries)
            finally:
                self.inside -= 1
                self.changed.notify_all()

    def wait_for(self, condition: Callable[[], bool]) -> None:
        assert self.changed.wait_for(condition, PATIENCE_SECONDS)


@contextmanager
def raising_interrupted(number: signal.Signals) -> Iterator[None]:
    """Make a signal what the command line makes of it."""

    def interrupt(number: int, _frame: FrameType | None) -> None:
        raise Interrupted(number)

    old = signal.signal(number, interrupt)
    try:
        yield
    finally:
        signal.signal(number, old)


# --- outcomes


def test_every_image_is_tried_and_reported_once() -> None:
    tried: list[int] = []
    outcomes = work(50, tried.append)
    assert sorted(tried) == sorted(image for image, _, _ in outcomes) == list(range(50))


def test_nothing_to_do_is_done() -> None:
    assert work(0, Failing()) == []


def test_as_many_run_at_a_time_as_jobs_are_allowed() -> None:
    together = threading.Barrier(4)

    def attempt(_image: int) -> None:
        together.wait(PATIENCE_SECONDS)

    assert len(work(4, attempt, at_a_time=4)) == 4


def test_no_more_run_at_a_time_than_jobs_are_allowed() -> None:
    seen: list[int] = []

    def tell(crowd: Crowd, number: int) -> None:
        crowd.changed.wait_for(lambda: crowd.inside > 2, 0.01)
        seen.append(crowd.inside)

    work(8, Crowd(tell), at_a_time=2)
    assert max(seen) == 2


def test_images_that_share_a_blob_do_not_run_at_a_time() -> None:
    lock, clashes = threading.Lock(), 0

    def attempt(_image: int) -> None:
        nonlocal clashes
        if not lock.acquire(blocking=False):
            clashes += 1
            return
        time.sleep(0.001)
        lock.release()

    work([Job(blobs=[0]), Job(blobs=[0])], attempt)
    assert clashes == 0


def test_a_failed_image_takes_with_it_what_comes_after_it() -> None:
    jobs = [Job(blobs=()), Job(blobs=(), after=[0]), Job(blobs=(), after=[1])]
    assert work(jobs, Failing(PERMANENT)) == [(0, PERMANENT, [1, 2])]


# --- retries


def test_a_temporary_error_is_tried_again() -> None:
    attempt = Failing(TEMPORARY, TEMPORARY)
    assert work(1, attempt) == [(0, None, [])]
    assert len(attempt.times) == 3


def test_tries_are_counted_the_first_included() -> None:
    attempt = Failing(*[TEMPORARY] * 9)
    assert work(1, attempt, retry=Retry(tries=3, first_seconds=0.0)) == [(0, TEMPORARY, [])]
    assert len(attempt.times) == 3


def test_a_permanent_error_is_tried_once() -> None:
    attempt = Failing(PERMANENT)
    assert work(1, attempt) == [(0, PERMANENT, [])]
    assert len(attempt.times) == 1


def test_retry_after_is_honoured() -> None:
    attempt = Failing(TemporaryDestinationError("slow down", retry_after_seconds=0.2))
    work(1, attempt)
    assert attempt.times[1] - attempt.times[0] >= 0.2


def test_other_images_run_while_one_waits_for_its_next_try() -> None:
    others_done = threading.Event()
    tries: list[int] = []

    def attempt(image: int) -> SkopeoDirError | None:
        tries.append(image)
        if image == 0 and tries.count(0) == 1:
            return TemporaryDestinationError("slow down", retry_after_seconds=0.1)
        if image == 0:
            assert others_done.is_set()
        if image == 3:
            others_done.set()
        return None

    work(4, attempt, at_a_time=1)
    assert tries == [0, 1, 2, 3, 0]


@pytest.mark.parametrize(("failures", "least", "most"), [(1, 0.5, 1), (2, 1, 2), (9, 30, 60)])
def test_the_wait_doubles_up_to_its_bound_and_is_spread_by_half(
    failures: int, least: float, most: float
) -> None:
    waits = [Retry().wait_seconds(failures, TEMPORARY) for _ in range(200)]
    assert least <= min(waits) < max(waits) <= most


def test_retry_after_may_exceed_the_longest_wait() -> None:
    error = TemporaryDestinationError("maintenance", retry_after_seconds=600.0)
    assert Retry().wait_seconds(1, error) == 600.0


# --- backing off


def test_when_all_of_four_are_pushed_back_the_next_one_runs_alone() -> None:
    seen: list[int] = []

    def tell(crowd: Crowd, number: int) -> SkopeoDirError | None:
        if number <= 4:
            crowd.wait_for(lambda: crowd.entries >= 4)
            return TEMPORARY
        if number == 5:
            crowd.changed.wait_for(lambda: crowd.inside > 1, 0.05)
            seen.append(crowd.inside)
        return None

    work(20, Crowd(tell), at_a_time=4)
    assert seen == [1]


def test_one_push_back_halves_how_many_run() -> None:
    seen: list[int] = []

    def tell(crowd: Crowd, number: int) -> SkopeoDirError | None:
        if number <= 4:
            crowd.wait_for(lambda: crowd.entries >= 4)
            if number == 1:
                return TEMPORARY
            crowd.wait_for(lambda: crowd.inside < 4)  # the one that was pushed back has left
            crowd.changed.wait_for(lambda: crowd.entries > 4, 0.05)
            seen.append(crowd.entries)
        return None

    work(20, Crowd(tell), at_a_time=4)
    assert seen[0] == 4


def test_success_brings_all_jobs_back() -> None:
    back = threading.Event()

    def tell(crowd: Crowd, number: int) -> SkopeoDirError | None:
        if number <= 4:
            return TEMPORARY
        if number > 20:  # by then the limit has grown back, so three others must come
            crowd.wait_for(lambda: back.is_set() or crowd.inside == 4)
            back.set()
        return None

    work(40, Crowd(tell), at_a_time=4)
    assert back.is_set()


# --- ending


def test_an_exception_of_an_attempt_ends_the_run_and_is_raised() -> None:
    tried: list[int] = []

    def attempt(image: int) -> None:
        tried.append(image)
        raise UsageError("skopeo is gone")

    with pytest.raises(UsageError, match="skopeo is gone"):
        work(1000, attempt, at_a_time=2)
    assert len(tried) <= 2


def test_an_exception_waits_for_the_attempts_that_are_running() -> None:
    entered = threading.Barrier(2)
    finished: list[int] = []

    def attempt(image: int) -> None:
        entered.wait(PATIENCE_SECONDS)
        if image == 0:
            raise ZeroDivisionError
        time.sleep(0.05)
        finished.append(image)

    with pytest.raises(ZeroDivisionError):
        work(3, attempt, at_a_time=2)
    assert finished == [1]


def test_an_exception_does_not_wait_for_the_next_try_of_another_image() -> None:
    slow = TemporaryDestinationError("slow down", retry_after_seconds=PATIENCE_SECONDS)
    began = time.monotonic()

    def attempt(image: int) -> SkopeoDirError | None:
        if image == 0:
            return slow
        raise UsageError("skopeo is gone")

    with pytest.raises(UsageError):
        work(2, attempt, at_a_time=2)
    assert time.monotonic() - began < PATIENCE_SECONDS


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_stops_what_runs_and_starts_nothing_new(number: signal.Signals) -> None:
    stopped = threading.Event()
    running = threading.Barrier(2)
    tried: list[int] = []
    stops: list[int] = []

    def attempt(image: int) -> SkopeoDirError:
        tried.append(image)
        if running.wait(PATIENCE_SECONDS) == 0:
            os.kill(os.getpid(), number)
        assert stopped.wait(PATIENCE_SECONDS)
        return Interrupted(number)

    def stop(number: int) -> None:
        stops.append(number)
        stopped.set()

    with raising_interrupted(number), pytest.raises(Interrupted) as caught:
        work(10, attempt, at_a_time=2, stop=stop)
    assert (caught.value.exit_code, stops, sorted(tried)) == (128 + number, [number], [0, 1])


def test_interrupted_before_all_threads_are_started_ends_those_that_are() -> None:
    stopped = threading.Event()

    def attempt(image: int) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stopped.wait(PATIENCE_SECONDS)

    with raising_interrupted(signal.SIGTERM), pytest.raises(Interrupted):
        # The first thread sends the signal while the others are still being started.
        work(500, attempt_once(attempt), at_a_time=500, stop=lambda _number: stopped.set())


def attempt_once(attempt: Callable[[int], None]) -> Attempt:
    """Let only the first image be tried; the others succeed at once."""

    def run(image: int) -> None:
        if image == 0:
            attempt(image)

    return run


# --- while images run


def test_after_a_failure_nothing_more_is_started_if_so_asked() -> None:
    started: list[int] = []

    def attempt(image: int) -> SkopeoDirError | None:
        started.append(image)
        return PERMANENT if image == 2 else None

    ended: list[int] = []
    Workers(
        Schedule([Job(blobs=())] * 9, []),
        attempt,
        lambda image, _error, _lost: ended.append(image),
        jobs=1,
        retry=AT_ONCE,
        fail_fast=True,
    ).run(stop=lambda _number: None)
    assert started == ended == [0, 1, 2]


def test_a_settled_blob_lets_others_start_while_its_image_still_runs() -> None:
    second_ran = threading.Event()

    def attempt(image: int) -> SkopeoDirError | None:
        if image == 0:
            workers.settle(0)
            assert second_ran.wait(PATIENCE_SECONDS)
        second_ran.set()
        return None

    workers = Workers(
        Schedule([Job(blobs=[0]), Job(blobs=[0])], [1]),
        attempt,
        lambda *_outcome: None,
        jobs=2,
        retry=AT_ONCE,
    )
    workers.run(stop=lambda _number: None)
    assert second_ran.is_set()


def test_slowing_down_halves_how_many_run_until_successes_bring_it_up_again() -> None:
    lock, running, seen = threading.Lock(), 0, list[int]()
    together = threading.Barrier(4)

    def attempt(image: int) -> None:
        nonlocal running
        with lock:
            running += 1
            seen.append(running)
        if image < 4:
            together.wait(PATIENCE_SECONDS)
            workers.slow_down()
            together.wait(PATIENCE_SECONDS)
        with lock:
            running -= 1

    workers = Workers(
        Schedule([Job(blobs=())] * 12, []),
        attempt,
        lambda *_outcome: None,
        jobs=4,
        retry=AT_ONCE,
    )
    workers.run(stop=lambda _number: None)
    assert seen[:4] == [1, 2, 3, 4]
    assert max(seen[4:6]) <= 3  # from 1: 2 after the first success, 2.5, 2.9, 3.2
