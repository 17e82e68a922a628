"""What the user sees: results on stdout, progress and errors on stderr.

A bar only on a terminal; elsewhere a line now and then. `--json` makes every event and the
summary one JSON line on stdout.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any, Protocol

import orjson

from exporter.errors import SkopeoDirError
from exporter.events import Event, Failed, Linking, Observer, Started, Unpacking, json_line

_EVERY_SECONDS = 10.0
_FRAME_SECONDS = 0.1
_WAYS = {
    "auto": "hard links",
    "hardlink": "hard links",
    "reflink": "reflinks",
    "copy": "copies",
    "symlink": "symbolic links",
}
_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


class _Listener(Protocol):
    def __call__(self, event: Event) -> None: ...

    def close(self) -> None: ...


@contextmanager
def listening(*, json: bool) -> Iterator[Observer]:
    """Give the observer that suits stdout and stderr, and end its bar afterwards."""
    listener: _Listener
    if json:
        listener = _JsonLines()
    elif sys.stderr.isatty():
        listener = _Bar()
    else:
        listener = _Lines()
    try:
        yield listener
    finally:
        listener.close()


def print_json(message_type: str, record: object) -> None:
    """Print a dataclass or a dictionary as one JSON line on stdout, with its `message_type`."""
    values = record if isinstance(record, dict) else _values(record)
    line = orjson.dumps({"message_type": message_type, **values}, option=orjson.OPT_APPEND_NEWLINE)
    sys.stdout.buffer.write(line)


def print_error(error: SkopeoDirError) -> None:
    """Say on stderr what ended the run, and what to do about it."""
    hint = f"\nhint: {error.hint}" if error.hint else ""
    print(f"error: {error.message}{hint}", file=sys.stderr, flush=True)  # noqa: T201


def human_size(size: int) -> str:
    """Return bytes in decimal units, three significant digits: `2.5 TB`."""
    value, unit = float(size), 0
    while value >= 999.5 and unit < len(_UNITS) - 1:
        value, unit = value / 1000, unit + 1
    return f"{size} B" if unit == 0 else f"{value:.3g} {_UNITS[unit]}"


def _values(record: object) -> dict[str, Any]:
    return {each.name: getattr(record, each.name) for each in fields(record)}  # type: ignore[arg-type]


def _sentence(event: Failed | Unpacking | Linking) -> str:
    if isinstance(event, Linking):
        return f"export: by {_WAYS[event.mode]} ({event.reason or f'--link-mode {event.mode}'})"
    if isinstance(event, Unpacking):
        size = human_size(event.size)
        known = event.blobs is not None
        needs = f"{size} and {event.inodes} inodes" if known else f"at least {size}"
        return f"unpack: {event.archive}: needs {needs}; {human_size(event.free)} are free"
    return f"{event.verb} failed: {event.name}: {event.message} [{event.error}]"


class _JsonLines:
    def __call__(self, event: Event) -> None:
        sys.stdout.buffer.write(json_line(event))

    def close(self) -> None:
        sys.stdout.flush()


class _Lines:
    """A line for each failure, and one now and then for the rest."""

    def __init__(self) -> None:
        self._verb, self._total, self._done = "", "", 0
        self._last = time.monotonic()

    def __call__(self, event: Event) -> None:
        if isinstance(event, Started):
            self._verb, self._total, self._done = event.verb, f"{event.images} images", 0
            self._say(f"{event.verb}: {event.images} images")
            return
        if isinstance(event, Unpacking):
            self._verb, self._total, self._done = "unpack", f"{event.blobs or 'many'} blobs", 0
            self._say(_sentence(event))
            return
        if isinstance(event, Linking):
            self._say(_sentence(event))
            return
        self._done += 1
        if isinstance(event, Failed):
            self._say(_sentence(event))
        elif time.monotonic() - self._last >= _EVERY_SECONDS:
            self._say(f"{self._verb}: {self._done} of {self._total}")

    def close(self) -> None:
        pass

    def _say(self, text: str) -> None:
        self._last = time.monotonic()
        print(text, file=sys.stderr, flush=True)  # noqa: T201


class _Bar:
    """A bar for each verb; failures scroll above it.

    It is drawn when something is told, not by a thread: `export` forks.
    """

    def __init__(self) -> None:
        from rich.console import Console  # only a terminal pays
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

        self._progress = Progress(
            "{task.description}",
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=Console(stderr=True),
            auto_refresh=False,
        )
        self._drawn = 0.0
        self._task = self._progress.add_task("", total=None, visible=False)

    def __call__(self, event: Event) -> None:
        if isinstance(event, Started):
            self._begin(event.verb, event.images)
        elif isinstance(event, Unpacking):
            self._print(event)
            self._begin("unpack", event.blobs)
        elif isinstance(event, Linking):
            self._print(event)
        else:
            if isinstance(event, Failed):
                self._print(event)
            self._progress.advance(self._task)
            if time.monotonic() - self._drawn >= _FRAME_SECONDS:
                self._drawn = time.monotonic()
                self._progress.refresh()

    def close(self) -> None:
        self._progress.stop()

    def _begin(self, verb: str, total: int | None) -> None:
        self._progress.start()
        self._task = self._progress.add_task(verb, total=total)
        self._progress.refresh()

    def _print(self, event: Failed | Unpacking | Linking) -> None:
        self._progress.console.print(_sentence(event), markup=False, highlight=False)
