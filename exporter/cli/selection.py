"""From `--include`, `--exclude` and `--from-file` to a `Selection`."""

import sys

from exporter.cli.options import Selecting
from exporter.errors import UsageError
from exporter.plan import Selection


def selection(selecting: Selecting) -> Selection:
    """Return what the three options mean together: an image must pass all of them.

    Raises:
        UsageError: The file cannot be read or lists nothing.
    """
    return Selection(
        include=selecting.include or (),
        exclude=selecting.exclude or (),
        names=None if selecting.from_file is None else _names(selecting.from_file),
    )


def _names(path: str) -> list[str]:
    """Return the lines of a file, without blank ones and `#` comments."""
    try:
        if path == "-":
            text = sys.stdin.read()
        else:
            with open(path, encoding="utf-8") as file:
                text = file.read()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path} cannot be read: it is not text") from None
    lines = (line.strip() for line in text.splitlines())
    names = [line for line in lines if line and not line.startswith("#")]
    if not names:
        raise UsageError(f"{path} lists no image")
    return names
