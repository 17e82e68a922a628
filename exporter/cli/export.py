"""`skopeo-dir export`."""

import os
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from exporter.cli import options
from exporter.cli.console import human_size, listening, print_json
from exporter.errors import UsageError

if TYPE_CHECKING:
    from exporter.export import ExportSummary
    from exporter.storage import Storage
    from exporter.storage.archive import Archive


def export_images(
    source: options.Source,
    out: options.Out,
    *,
    selecting: options.Selecting,
    untagged: options.Untagged = False,
    link_mode: options.LinkMode = "auto",
    delete: Annotated[
        bool,
        typer.Option(
            "--delete", help="Remove the images of earlier exports that the source no longer has."
        ),
    ] = False,
    json: options.Json = False,
) -> int:
    """Build dir: images out of hard links.

    Every tag of the registry becomes OUT/REPOSITORY:TAG, usable by any skopeo. Run it again to
    bring OUT up to date, or to finish what was interrupted.
    """
    from exporter import dirlayout, files
    from exporter.cli.selection import selection
    from exporter.cli.source import exit_code, is_damaged, linkable, open_source
    from exporter.export import export
    from exporter.link import LinkMode

    mode = LinkMode(link_mode)
    registry = open_source(source, from_file=selecting.from_file)
    wanted = selection(selecting)
    out = out_path(registry, out)
    dirlayout.prepare(out)
    with (
        files.locked(dirlayout.lock_file(out)),
        listening(json=json) as observe,
        linkable(registry, out, wanted, observe, untagged=untagged, mode=mode) as storage,
    ):
        summary = export(
            storage,
            out,
            selection=wanted,
            untagged=untagged,
            link_mode=mode,
            delete=delete and not is_damaged(registry),
            observe=observe,
        )
    if json:
        print_json("summary", summary)
    else:
        sys.stdout.write(f"{sentence(summary)}\n")
    return exit_code(registry, failed=summary.failed > 0)


def out_path(registry: "Storage | Archive", out: str) -> str:
    """Return the absolute path of OUT.

    Raises:
        UsageError: OUT is inside the registry's storage.
    """
    from exporter.storage import Storage

    path = os.path.realpath(out)
    if isinstance(registry, Storage) and os.path.commonpath([path, registry.root]) == registry.root:
        raise UsageError(f"{out} is inside the registry's storage, which is never written to")
    return path


def sentence(summary: "ExportSummary") -> str:
    """Return the summary for a person."""
    saved = summary.linked_bytes - summary.unique_bytes
    deleted = f", {summary.deleted} deleted" if summary.deleted else ""
    return (
        f"exported {summary.images} images ({summary.unchanged} unchanged, "
        f"{summary.failed} failed{deleted}): {summary.links} links, {summary.reflinked} reflinks, "
        f"{summary.copied} copies, "
        f"{human_size(summary.unique_bytes)} of unique blobs, {human_size(saved)} saved by sharing"
    )
