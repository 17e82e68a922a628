"""Forks that share work: everything once, errors and deaths told, nobody left behind."""

import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from exporter.errors import NoSpaceError, UsageError
from exporter.forks import MAX_ITEMS, in_forks

PROCESSES = [1, 2, 5]


def square(number: int) -> int:
    return number * number


def fail(number: int) -> int:
    if number == 7:
        raise NoSpaceError("full", hint="free some")
    return number


def die(number: int) -> int:
    if number == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def children() -> set[int]:
    task = Path(f"/proc/self/task/{os.getpid()}/children")
    return {int(pid) for pid in task.read_text().split()}


@pytest.mark.parametrize("processes", PROCESSES)
@pytest.mark.parametrize("items", [0, 1, 100, 3000])
def test_every_item_is_worked_on_once(processes: int, items: int) -> None:
    found = sorted(in_forks(square, range(items), processes=processes))
    assert found == [square(number) for number in range(items)]


def test_a_pipe_can_number_as_many_items_as_it_says() -> None:
    assert sum(1 for _ in in_forks(square, range(MAX_ITEMS), processes=2)) == MAX_ITEMS


def test_more_items_than_a_pipe_can_number_are_refused() -> None:
    with pytest.raises(ValueError, match="16385 items"):
        list(in_forks(square, range(MAX_ITEMS + 1), processes=2))


def test_the_work_is_done_by_other_processes_at_the_same_time() -> None:
    reader, writer = os.pipe()

    def meet(number: int) -> int:
        if number == 0:  # is given out first, and waits until another has taken the second
            os.read(reader, 1)
        else:
            os.write(writer, b"x")
        return os.getpid()

    pids = set(in_forks(meet, range(2), processes=2))
    assert (len(pids), os.getpid() in pids) == (2, False)


@pytest.mark.parametrize("processes", PROCESSES)
def test_an_exception_is_raised_as_it_was_with_all_it_says(processes: int) -> None:
    with pytest.raises(NoSpaceError, match="full") as caught:
        list(in_forks(fail, range(100), processes=processes))
    assert (caught.value.hint, caught.value.exit_code, children()) == ("free some", 7, set())


def test_a_death_is_an_error_after_the_others_have_done_the_rest() -> None:
    results = in_forks(die, range(1000), processes=2)
    found = [next(results) for _ in range(999)]
    with pytest.raises(UsageError, match="a process of this run was killed by signal 9"):
        next(results)
    assert sorted(found) == [number for number in range(1000) if number != 7]
    assert children() == set()


def test_the_death_of_all_is_an_error_and_no_hang() -> None:
    with pytest.raises(UsageError, match="killed by signal 9"):
        list(in_forks(die, [7] * 100, processes=2))


def test_whoever_stops_listening_ends_them() -> None:
    with closing(in_forks(square, range(1000), processes=2)) as results:
        next(results)
        assert len(children()) == 2
    assert children() == set()


ORPHANS = r"""
import os, sys, time
from exporter.forks import in_forks
def wait(number):
    os.write(1, b"%d\n" % os.getpid())
    time.sleep(60)
list(in_forks(wait, range(2), processes=2))
"""


def test_they_die_with_their_parent() -> None:
    with subprocess.Popen([sys.executable, "-c", ORPHANS], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        forks = [int(process.stdout.readline()) for _ in range(2)]
        process.kill()
        process.wait()
        # Its stdout is theirs, too: it ends with the last of them.
        began = time.monotonic()
        assert process.stdout.read() == b""
    assert time.monotonic() - began < 30
    assert [fork for fork in forks if Path(f"/proc/{fork}/exe").exists()] == []
