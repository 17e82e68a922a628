"""Forked processes that share a list of work: what the interpreter's lock keeps threads from."""

import ctypes
import gc
import os
import pickle
import signal
import socket
import struct
from collections.abc import Callable, Generator, Sequence
from typing import NoReturn, TypeVar

from exporter.errors import UsageError

T = TypeVar("T")
R = TypeVar("R")

_TICKET = struct.Struct("I")
MAX_ITEMS = 64 * 1024 // _TICKET.size  # a pipe holds so many numbers without a reader
_MAX_PACKET = 256 * 1024  # more than a socket's default buffer lets pass
_PR_SET_PDEATHSIG = 1


def in_forks(
    work: Callable[[T], R], items: Sequence[T], *, processes: int
) -> Generator[R, None, None]:
    """Yield `work(item)` for every item, in the order in which they are done.

    The processes end with this iterator, however it ends, and the kernel kills them when this
    process dies. What was open here is open there: a lock is held until the last of them is gone.

    Args:
        work: Runs in the forks; what it returns is pickled, and has to fit into 200 kB.
        items: At most `MAX_ITEMS` if there is more than one process.
        processes: How many to fork. If 1, none is: the work is done here.

    Raises:
        UsageError: A process died, or could not be forked.
        Exception: What `work` raised.

    Must not be used while other threads run: a fork has only the one that forked.
    """
    if processes == 1:
        yield from map(work, items)
        return
    if len(items) > MAX_ITEMS:
        raise ValueError(f"{len(items)} items are more than a pipe can number")
    parent = os.getpid()
    tickets, tickets_end = os.pipe()
    os.write(tickets_end, b"".join(map(_TICKET.pack, range(len(items)))))
    os.close(tickets_end)
    # A packet is whole or not there, so the forks need no lock to share the way back.
    results, results_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    forks: list[int] = []
    try:
        for _ in range(processes):
            try:
                forks.append(os.fork())
            except OSError as error:
                raise UsageError(f"cannot start a process: {error.strerror}") from None
            if forks[-1] == 0:
                results.close()
                _work_off(work, items, tickets, results_end, parent)
        results_end.close()
        while packet := results.recv(_MAX_PACKET):  # empty when the last fork is gone
            done, outcome = pickle.loads(packet)  # noqa: S301 - it comes from ourselves
            if not done:
                raise outcome
            yield outcome
        while forks:
            _reap(forks.pop())
    finally:
        results.close()
        os.close(tickets)
        for fork in forks:
            os.kill(fork, signal.SIGKILL)
        for fork in forks:
            os.waitpid(fork, 0)


def _reap(fork: int) -> None:
    _, status = os.waitpid(fork, 0)
    if status != 0:
        code = os.waitstatus_to_exitcode(status)
        how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
        raise UsageError(
            f"a process of this run {how}",
            hint="was memory short? Run the same command again: it goes on where it stopped",
        )


def _work_off(
    work: Callable[[T], R], items: Sequence[T], tickets: int, results: socket.socket, parent: int
) -> NoReturn:
    """Be a fork: take a number, do its work, send what came of it."""
    code = 1
    try:
        # ctrl-c reaches every process of the terminal; the parent decides what comes of it.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        gc.disable()  # nothing here makes cycles, and looking for them copies pages
        while os.getppid() == parent and (ticket := os.read(tickets, _TICKET.size)):
            results.send(pickle.dumps((True, work(items[_TICKET.unpack(ticket)[0]]))))
        code = 0
    except BaseException as error:  # noqa: BLE001 - the parent raises it again
        results.send(pickle.dumps((False, error)))
    finally:
        os._exit(code)
