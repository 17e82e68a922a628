"""What a push leaves on disk: a line for each image, a digestfile, and a list of failures.

```
OUT/.skopeo-dir/
├── results-<time>-<process>.jsonl   one line an image, as `--json` prints it
└── failed.txt                       what failed in the last push; `--from-file` takes it
```
A line is written as soon as it is true, so a killed run leaves what it had done.
"""

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import IO

from exporter import dirlayout, events, files
from exporter.events import Event, Failed, Observer, Pushed


def failures_file(out: str) -> str:
    """Return the file that names what failed in the last push from OUT, one image a line."""
    return f"{dirlayout.work_directory(out)}/failed.txt"


@contextmanager
def recording(out: str, observe: Observer, *, digestfile: str | None = None) -> Iterator[Observer]:
    """Give an observer that writes down what becomes of each pushed image, and tells `observe`.

    Args:
        out: Directory of images; the caller holds its lock.
        observe: Is told everything.
        digestfile: Is replaced by a line `digest docker://host/repository:tag` for each image
            that is at the destination, as `skopeo sync --digestfile` writes it.

    Raises:
        SkopeoDirError: A file cannot be written.
    """
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    results = f"{dirlayout.work_directory(out)}/results-{stamp}-{os.getpid()}.jsonl"
    failed: list[str] = []
    with ExitStack() as stack:
        lines = stack.enter_context(_opened(results))
        digests = None if digestfile is None else stack.enter_context(_opened(digestfile))

        def record(event: Event) -> None:
            if isinstance(event, Pushed) or (isinstance(event, Failed) and event.verb == "push"):
                _write(lines, events.json_line(event))
            if isinstance(event, Pushed) and digests is not None:
                _write(digests, f"{event.digest} docker://{event.destination}\n".encode())
            if isinstance(event, Failed) and event.verb == "push":
                failed.append(event.name)
            observe(event)

        try:
            yield record
        finally:
            path = failures_file(out)
            try:
                files.write_atomically(path, "".join(f"{name}\n" for name in failed).encode())
            except OSError as error:
                raise files.failure(error, path) from None


def _opened(path: str) -> IO[bytes]:
    try:
        return open(path, "wb", buffering=0)
    except OSError as error:
        raise files.failure(error, path) from None


def _write(file: IO[bytes], line: bytes) -> None:
    try:
        file.write(line)
    except OSError as error:
        raise files.failure(error, str(file.name)) from None
