"""Processes: started, waited for, and ended with us. The only module that starts any."""

import functools
import os
import select
import shutil
import signal
import subprocess
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from typing import IO, Protocol

from exporter.errors import Interrupted, UsageError
from exporter.skopeo.turn import Turn

GRACE_SECONDS = 5.0
"""How long `Processes.stop` waits between SIGTERM and SIGKILL."""

MAX_OUTPUT = 256 * 1024
"""How much of the end of each output stream is read, in bytes; the fatal line is the last."""


@dataclass(frozen=True, slots=True)
class Finished:
    """A process that has ended: its return code (-n if signal n killed it) and its outputs."""

    returncode: int
    stdout: str
    stderr: str


class Run(Protocol):
    """Starts a process and waits for it; `Processes.run`, or a fake."""

    def __call__(
        self,
        command: Sequence[str],
        *,
        listen: Callable[[str], None] | None = None,
        environment: Mapping[str, str] | None = None,
        turn: Turn | None = None,
    ) -> Finished:
        """See `Processes.run`."""


class Processes:
    """Runs processes to their end, and ends them all when told to. Thread-safe.

    Each runs in its own process group, so ctrl-c in the terminal reaches us alone, and with stdin
    closed. Where util-linux's setpriv is at hand the kernel kills the
    process when we die, however we die. That signal follows the *thread* that forked
    (prctl(2), PR_SET_PDEATHSIG), so `run` waits in the thread that starts the process.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._stopped_by: int | None = None

    def run(
        self,
        command: Sequence[str],
        *,
        listen: Callable[[str], None] | None = None,
        environment: Mapping[str, str] | None = None,
        turn: Turn | None = None,
    ) -> Finished:
        """Run `command` and return what became of it, whatever its return code is.

        Args:
            command: Program and arguments.
            listen: Is given every line of stderr while the process runs, by this thread.
            environment: Variables that it gets; ours if None.
            turn: Is waited for when the process has been started, and ends with it at the latest.
                Until then the process gets no further than its first line of stderr.

        Raises:
            Interrupted: `stop` was called before it had succeeded.
            UsageError: It cannot be started.
        """
        reader, writer = os.pipe()
        with open(reader, "rb") as stream, tempfile.TemporaryFile() as stdout:
            try:
                filler = _fill(writer) if turn is not None else 0
                process = self._start(command, stdout, writer, environment)
            finally:
                os.close(writer)
            with turn or nullcontext():
                stream.read(filler)
                stderr = _read(stream, listen)
            # WNOWAIT: until it is reaped, under the lock, nobody else can have its process id,
            # so `stop` never signals a stranger.
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
            with self._changed:
                returncode = process.wait()
                self._running.discard(process)
                self._changed.notify_all()
                if returncode != 0 and self._stopped_by is not None:
                    raise Interrupted(self._stopped_by)
            size = stdout.seek(0, os.SEEK_END)
            stdout.seek(max(0, size - MAX_OUTPUT))
            return Finished(returncode, stdout.read().decode(errors="replace"), stderr)

    def stop(self, signal_number: int, *, grace_seconds: float = GRACE_SECONDS) -> None:
        """End every process, and let no other start; idempotent.

        SIGTERM first, SIGKILL after the grace. Returns when all have ended. It takes a lock and
        waits, so it is not for the inside of a signal handler.

        Args:
            signal_number: The signal that we were sent; `run` raises `Interrupted` with it.
            grace_seconds: What a process may take to end by itself.
        """
        with self._changed:
            self._stopped_by = signal_number
            self._signal(signal.SIGTERM)
            if not self._changed.wait_for(lambda: not self._running, grace_seconds):
                self._signal(signal.SIGKILL)
                self._changed.wait_for(lambda: not self._running, GRACE_SECONDS)

    def _start(
        self,
        command: Sequence[str],
        stdout: IO[bytes],
        stderr: int,
        environment: Mapping[str, str] | None,
    ) -> subprocess.Popen[bytes]:
        with self._changed:
            if self._stopped_by is not None:
                raise Interrupted(self._stopped_by)
            try:
                process = subprocess.Popen(
                    [*_dying_with_us(), *command],
                    stdin=subprocess.DEVNULL,
                    stdout=stdout,
                    stderr=stderr,
                    process_group=0,
                    env=environment,
                )
            except OSError as error:
                raise UsageError(f"cannot start {command[0]}: {error.strerror}") from error
            self._running.add(process)
            return process

    def _signal(self, number: signal.Signals) -> None:
        for process in self._running:
            os.killpg(process.pid, number)


def _fill(pipe: int) -> int:
    """Fill an empty pipe, so that whoever writes to it next must wait; return how many bytes."""
    filler = 0
    os.set_blocking(pipe, False)
    with suppress(BlockingIOError):
        while True:
            filler += os.write(pipe, bytes(select.PIPE_BUF))
    os.set_blocking(pipe, True)
    return filler


def _read(stream: IO[bytes], listen: Callable[[str], None] | None) -> str:
    """Read to the end, pass each line on, and return the end of it all."""
    kept, size = deque[bytes](), 0
    for line in iter(lambda: stream.readline(MAX_OUTPUT), b""):
        if listen is not None:
            listen(line.decode(errors="replace"))
        kept.append(line)
        size += len(line)
        while size - len(kept[0]) >= MAX_OUTPUT:
            size -= len(kept.popleft())
    return b"".join(kept)[-MAX_OUTPUT:].decode(errors="replace")


@functools.cache
def _dying_with_us() -> tuple[str, ...]:
    """Return what to put before a command so that it dies with us; nothing if that cannot be.

    Not by `preexec_fn`: that runs Python between fork and exec, which threads make unsafe.
    """
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        return ()
    usage = subprocess.run([setpriv, "--help"], capture_output=True, text=True, check=False)
    return (setpriv, "--pdeathsig", "KILL", "--") if "--pdeathsig" in usage.stdout else ()
