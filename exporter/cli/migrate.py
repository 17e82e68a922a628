"""`skopeo-dir migrate`: export, push and verify in one go."""

import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from exporter.cli import export as export_command
from exporter.cli import options
from exporter.cli import push as push_command
from exporter.cli import verify as verify_command
from exporter.cli.console import human_size, listening, print_json
from exporter.errors import EXIT_OK, UsageError
from exporter.events import Event, Exported, Failed, Observer

if TYPE_CHECKING:
    from exporter.storage import Storage
    from exporter.storage.archive import Archive


@dataclass(frozen=True, slots=True, kw_only=True)
class MigrateSummary:
    """What a migration did.

    Attributes:
        images: Tags that the source has, as far as they were selected.
        unique_bytes: Size of the distinct files that the exported images consist of.
        saved_bytes: What linking saves against a copy of each image.
        pushed: Images that are at the destination.
        verified: Images whose every digest the destination has.
        failed: Images of which a step failed.
        out: Where the exported images are.
    """

    images: int
    unique_bytes: int
    saved_bytes: int
    pushed: int
    verified: int
    failed: int
    out: str


def migrate(
    source: options.Source,
    dest: options.Dest,
    *,
    out: Annotated[
        str | None,
        typer.Option(
            "--out",
            metavar="OUT",
            help="Where the dir: images go: the source's file system. Default: SOURCE.skopeo-dir",
        ),
    ] = None,
    selecting: options.Selecting,
    untagged: options.Untagged = False,
    link_mode: options.LinkMode = "auto",
    pushing: options.Pushing,
    access: options.Access,
    engine: options.Engine,
    json: options.Json = False,
) -> int:
    """Export, push and verify in one go.

    Run it again after any interruption: it does what is left.
    """
    from exporter import dirlayout, files
    from exporter.cli.destination import connected, find_skopeo, parse_destination
    from exporter.cli.selection import selection
    from exporter.cli.source import exit_code, linkable, open_source, readable
    from exporter.export import export
    from exporter.link import LinkMode
    from exporter.outcome import PushSummary
    from exporter.plan import Selection, candidates, select
    from exporter.shipment import Schema1, Shipment
    from exporter.skopeo import Processes
    from exporter.verify import VerifySummary, verify

    destination = parse_destination(dest)
    mode = LinkMode(link_mode)
    registry = open_source(source, from_file=selecting.from_file)
    wanted = selection(selecting)
    processes = Processes()
    path = export_command.out_path(registry, out or default_out(registry))
    with connected(destination, access) as (client, access_with_authfile):
        if pushing.dry_run or pushing.print_commands:
            skopeo = find_skopeo(engine, access, processes)
            with readable(registry) as storage:
                found = select(candidates(storage, untagged=untagged), wanted)
                shipment = Shipment.of_storage(
                    storage, path, destination, found, schema1=Schema1(pushing.schema1)
                )
            code = push_command.foretell(shipment, client, skopeo, pushing, json=json)
            return exit_code(registry, failed=code != EXIT_OK)
        # What would stop the push is found before anything is built.
        skopeo = find_skopeo(engine, access_with_authfile, processes)
        client.ping()
        dirlayout.prepare(path)
        with files.locked(dirlayout.lock_file(path)), listening(json=json) as observe:
            outcome = _Outcome(observe)
            with linkable(registry, path, wanted, observe, untagged=untagged, mode=mode) as storage:
                exported = export(
                    storage,
                    path,
                    selection=wanted,
                    untagged=untagged,
                    link_mode=mode,
                    observe=outcome,
                )
            whole = Selection(names=outcome.exported)
            pushed, verified = PushSummary(), VerifySummary()
            if outcome.exported:
                pushed = push_command.deliver(
                    path,
                    Shipment.of_out(path, destination, whole, schema1=Schema1(pushing.schema1)),
                    client,
                    skopeo,
                    pushing,
                    stop=processes.stop,
                    observe=outcome,
                )
                verified = verify(
                    path,
                    destination,
                    client=client,
                    selection=whole,
                    jobs=pushing.jobs,
                    observe=outcome,
                )
    summary = MigrateSummary(
        images=exported.images + exported.failed,
        unique_bytes=exported.unique_bytes,
        saved_bytes=exported.linked_bytes - exported.unique_bytes,
        pushed=pushed.images,
        verified=verified.images,
        failed=len(outcome.failed),
        out=path,
    )
    if json:
        print_json("summary", summary)
    else:
        sys.stdout.write(f"{export_command.sentence(exported)}\n")
        sys.stdout.write(f"{push_command.sentence(pushed, path)}\n")
        sys.stdout.write(f"{verify_command.sentence(verified)}\n")
        sys.stdout.write(f"{_sentence(summary)}\n")
    return exit_code(registry, failed=summary.failed > 0)


def default_out(registry: "Storage | Archive") -> str:
    """Return the directory beside the registry's own or the archive: `…/registry.skopeo-dir`.

    Raises:
        UsageError: The archive is a stream.
    """
    from exporter.storage import Storage

    if not isinstance(registry, Storage):
        if not registry.repeatable:
            raise UsageError("a stream has no place of its own", hint="say where with --out OUT")
        return f"{os.path.realpath(registry.name)}.skopeo-dir"
    return registry.root.removesuffix("/v2").removesuffix("/docker/registry") + ".skopeo-dir"


class _Outcome:
    """Passes events on, and keeps the names of what was exported and of what failed."""

    def __init__(self, observe: Observer) -> None:
        self._observe = observe
        self.exported: set[str] = set()
        self.failed: set[str] = set()

    def __call__(self, event: Event) -> None:
        if isinstance(event, Exported):
            self.exported.add(event.name)
        elif isinstance(event, Failed):
            self.failed.add(event.name)
        self._observe(event)


def _sentence(summary: MigrateSummary) -> str:
    proof = "every image is proven" if not summary.failed else f"{summary.failed} images failed"
    return (
        f"{summary.images} images, {human_size(summary.unique_bytes)} of unique blobs, "
        f"{human_size(summary.saved_bytes)} saved by linking: {summary.pushed} pushed, "
        f"{summary.verified} verified, {summary.failed} failed; {proof}\n"
        f"the images are in {summary.out}; remove them when they are not needed"
    )
