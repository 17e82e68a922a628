"""`skopeo-dir verify`."""

import os
import sys
from typing import TYPE_CHECKING

from exporter.cli import options
from exporter.cli.console import listening, print_json
from exporter.errors import EXIT_OK, EXIT_SOME_FAILED

if TYPE_CHECKING:
    from exporter.verify import VerifySummary


def verify_images(
    out: options.Out,
    dest: options.Dest,
    *,
    selecting: options.Selecting,
    jobs: options.Jobs = 8,
    access: options.Access,
    json: options.Json = False,
) -> int:
    """Compare the destination with OUT.

    The digest of every tag, and of every child of an index, must be the same at both ends.
    """
    from exporter.cli.destination import connected, parse_destination
    from exporter.cli.selection import selection
    from exporter.verify import verify

    destination = parse_destination(dest)
    wanted = selection(selecting)
    with connected(destination, access) as (client, _), listening(json=json) as observe:
        summary = verify(
            os.path.realpath(out),
            destination,
            client=client,
            selection=wanted,
            jobs=jobs,
            observe=observe,
        )
    if json:
        print_json("summary", summary)
    else:
        sys.stdout.write(f"{sentence(summary)}\n")
    return EXIT_SOME_FAILED if summary.failed else EXIT_OK


def sentence(summary: "VerifySummary") -> str:
    """Return the summary for a person."""
    return (
        f"verified {summary.images} images ({summary.failed} failed): "
        f"{summary.manifests} digests are the same at the destination"
    )
