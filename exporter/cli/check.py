"""`skopeo-dir check`."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from exporter.cli import options
from exporter.cli.console import listening, print_json
from exporter.events import Checked, Event, Observer

if TYPE_CHECKING:
    from exporter.check import CheckSummary


def check_images(
    source: options.Source,
    *,
    selecting: options.Selecting,
    untagged: options.Untagged = False,
    digests: Annotated[
        bool, typer.Option("--digests", help="Read every blob and compare it with its digest.")
    ] = False,
    json: options.Json = False,
) -> int:
    """Say of every tag whether it can be migrated.

    Names the file, the reason and the remedy of each that cannot. Writes nothing anywhere.
    """
    from exporter.check import check
    from exporter.cli.selection import selection
    from exporter.cli.source import exit_code, open_source, readable

    registry = open_source(source, from_file=selecting.from_file)
    wanted = selection(selecting)
    with readable(registry, digests=digests) as storage, listening(json=json) as observe:
        summary = check(
            storage,
            selection=wanted,
            untagged=untagged,
            digests=digests,
            observe=observe if json else _Printer(observe),
        )
    if json:
        print_json("summary", summary)
    else:
        sys.stdout.write(f"{sentence(summary)}\n")
    return exit_code(registry, failed=bool(summary.failed))


class _Printer:
    """Prints what is to be said of the tags that are not simply ok, and passes every event on."""

    def __init__(self, observe: Observer) -> None:
        self._observe = observe

    def __call__(self, event: Event) -> None:
        self._observe(event)
        if isinstance(event, Checked):
            for finding in event.findings:
                file = f"\n    file: {finding['file']}" if finding["file"] else ""
                sys.stdout.write(
                    f"{event.name}: {finding['verdict']}: {finding['message']}{file}\n"
                    f"    remedy: {finding['remedy']}\n"
                )
            if event.broken_platforms:
                sys.stdout.write(f"    broken: {', '.join(event.broken_platforms)}\n")
                sys.stdout.write(f"    whole: {', '.join(event.whole_platforms) or 'none'}\n")


def sentence(summary: "CheckSummary") -> str:
    """Return the summary for a person."""
    verdicts = ", ".join(
        f"{count} {verdict}" for verdict, count in sorted(summary.verdicts.items())
    )
    hashed = f"; {summary.hashed} blobs hashed" if summary.hashed else ""
    migrate = summary.images - summary.failed
    return f"checked {summary.images} images ({verdicts}{hashed}): {migrate} can be migrated"
