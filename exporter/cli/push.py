"""`skopeo-dir push`, and what `migrate` shares with it."""

import os
import shlex
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING

from exporter.cli import options
from exporter.cli.console import human_size, listening, print_json
from exporter.errors import EXIT_OK, EXIT_SOME_FAILED
from exporter.events import Observer

if TYPE_CHECKING:
    from exporter.distribution import Client
    from exporter.outcome import PushSummary
    from exporter.shipment import Forecast, Image, Shipment
    from exporter.skopeo import Skopeo


def push_images(
    out: options.Out,
    dest: options.Dest,
    *,
    selecting: options.Selecting,
    pushing: options.Pushing,
    access: options.Access,
    engine: options.Engine,
    json: options.Json = False,
) -> int:
    """Push the images of OUT with skopeo.

    Several at a time, every layer once, and only what the destination lacks. Run it again to
    finish what failed or was interrupted.
    """
    from exporter import dirlayout, files
    from exporter.cli.destination import connected, find_skopeo, parse_destination
    from exporter.cli.selection import selection
    from exporter.shipment import Schema1, Shipment
    from exporter.skopeo import Processes

    destination = parse_destination(dest)
    wanted = selection(selecting)
    out = os.path.realpath(out)
    processes = Processes()
    dirlayout.images(out)
    with connected(destination, access) as (client, access_with_authfile):
        if pushing.dry_run or pushing.print_commands:
            skopeo = find_skopeo(engine, access, processes)
            shipment = Shipment.of_out(out, destination, wanted, schema1=Schema1(pushing.schema1))
            return foretell(shipment, client, skopeo, pushing, json=json)
        skopeo = find_skopeo(engine, access_with_authfile, processes)
        dirlayout.make_work_directory(out)
        with files.locked(dirlayout.lock_file(out)), listening(json=json) as observe:
            shipment = Shipment.of_out(out, destination, wanted, schema1=Schema1(pushing.schema1))
            summary = deliver(
                out, shipment, client, skopeo, pushing, stop=processes.stop, observe=observe
            )
    if json:
        print_json("summary", summary)
    else:
        sys.stdout.write(f"{sentence(summary, out)}\n")
    return EXIT_SOME_FAILED if summary.failed else EXIT_OK


def deliver(
    out: str,
    shipment: "Shipment",
    client: "Client",
    skopeo: "Skopeo",
    pushing: options.Pushing,
    *,
    stop: Callable[[int], None],
    observe: Observer,
) -> "PushSummary":
    """Push as the options say, and write down what becomes of each image."""
    from exporter.pace import Pace
    from exporter.push import push
    from exporter.results import recording
    from exporter.sync import sync

    pace = Pace(
        jobs=pushing.jobs,
        jobs_per_project=pushing.jobs_per_project,
        fail_fast=pushing.fail_fast,
    )
    verb = push if pushing.via == "copy" else sync
    with recording(out, observe, digestfile=pushing.digestfile) as record:
        return verb(shipment, client=client, skopeo=skopeo, stop=stop, pace=pace, observe=record)


def foretell(
    shipment: "Shipment",
    client: "Client",
    skopeo: "Skopeo",
    pushing: options.Pushing,
    *,
    json: bool,
) -> int:
    """Say what a push would do, or print its commands; return the exit code."""
    from exporter.pace import Pace
    from exporter.push import foresee

    with listening(json=json) as observe:
        forecast = foresee(shipment, client=client, pace=Pace(jobs=pushing.jobs), observe=observe)
    if pushing.print_commands:
        for image in shipment.images:
            if not image.present:
                _print_command(image, skopeo, json=json)
    if json:
        print_json("forecast", asdict(forecast))
    elif not pushing.print_commands:
        sys.stdout.write(f"{_forecast_sentence(forecast)}\n")
    return EXIT_SOME_FAILED if forecast.images_failing else EXIT_OK


def _print_command(image: "Image", skopeo: "Skopeo", *, json: bool) -> None:
    if len(image.copies) > 1:
        print(  # noqa: T201
            f"{image.name}: an index inside an index takes more than a command: leave it to push",
            file=sys.stderr,
        )
        return
    command = skopeo.copy_command(image.directory, image.reference, mode=image.copies[0].mode)
    if json:
        print_json("command", {"name": str(image.name), "arguments": command})
    else:
        sys.stdout.write(f"{shlex.join(command)}\n")


def sentence(summary: "PushSummary", out: str) -> str:
    """Return the summary for a person."""
    from exporter.results import failures_file

    left = f", {summary.left} not tried" if summary.left else ""
    again = f"\nthe failed ones are in {failures_file(out)}; give it to --from-file"
    return (
        f"pushed {summary.images} images ({summary.present} were there before, "
        f"{summary.failed} failed{left}): {human_size(summary.bytes_sent)} sent, "
        f"{human_size(summary.bytes_mounted)} in {summary.mounted} blobs mounted across "
        f"repositories{again if summary.failed else ''}"
    )


def _forecast_sentence(forecast: "Forecast") -> str:
    return (
        f"would push {forecast.images_to_push} images ({forecast.images_present} are there, "
        f"{forecast.images_failing} would fail)\n"
        f"send: {human_size(forecast.bytes_to_send)} in {forecast.blobs_to_send} blobs\n"
        f"mount: {human_size(forecast.bytes_to_mount)} in {forecast.blobs_to_mount} blobs\n"
        f"there already: {human_size(forecast.bytes_present)}\n"
        f"requests: {forecast.requests}\n"
        f"projects: {', '.join(forecast.projects) or 'none'}"
    )
