"""`skopeo-dir list`."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from exporter.cli import options
from exporter.cli.console import human_size, print_json

if TYPE_CHECKING:
    from exporter.inventory import Listed


def list_images(
    source: options.Source,
    *,
    selecting: options.Selecting,
    untagged: options.Untagged = False,
    names: Annotated[
        bool, typer.Option("--names", help="Print REPOSITORY:TAG lines and nothing else.")
    ] = False,
    json: options.Json = False,
) -> int:
    """List every image of a registry.

    Name, digest, kind, platforms, size, and the size that it shares with others.
    """
    from exporter.cli.selection import selection
    from exporter.cli.source import exit_code, open_source, readable
    from exporter.inventory import inventory
    from exporter.plan import candidates, select

    registry = open_source(source, from_file=selecting.from_file)
    wanted = selection(selecting)
    with readable(registry) as storage:
        if names:
            images, unreadable = select(candidates(storage, untagged=untagged), wanted)
            sys.stdout.writelines(f"{image.name}\n" for image in images)
            for tag in unreadable:
                print(f"{tag.name}: {tag.problem}", file=sys.stderr)  # noqa: T201
            return exit_code(registry, failed=bool(unreadable))
        rows = list(inventory(storage, wanted, untagged=untagged))
    if json:
        for row in rows:
            print_json("image", row)
    else:
        _print_table(rows)
    return exit_code(registry, failed=any(row.problem for row in rows))


def _print_table(rows: "list[Listed]") -> None:
    """Print aligned columns, never cut: a digest that ends in `…` is of no use to anyone."""
    header = ("NAME", "DIGEST", "KIND", "PLATFORMS", "SIZE", "SHARED")
    table = [header] + [
        (
            row.name,
            row.digest.partition(":")[2][:12],
            row.kind,
            ",".join(row.platforms) or "-",
            human_size(row.size),
            human_size(row.shared_size),
        )
        for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for line in table:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        sys.stdout.write("  ".join(cells).rstrip() + "\n")
    for row in rows:
        if row.problem:
            sys.stdout.write(f"{row.name}: {row.problem}\n")
