"""Push by `skopeo sync --scoped`, a run for each repository: for those who must use it.

Its limits: one image after another within a repository; no mounts but those of skopeo's own cache;
an index is put again even if it is there; no index inside an index, and no Docker schema 1; one
error text for all that failed in a run.
"""

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from exporter.distribution import Client
from exporter.errors import (
    DestinationError,
    PermanentDestinationError,
    SkopeoDirError,
    SourceError,
)
from exporter.events import Observer, Started, silent
from exporter.outcome import Journey, PushSummary, Tally
from exporter.pace import Pace
from exporter.schedule import Job, Schedule
from exporter.shipment import Image, Shipment
from exporter.skopeo import Mode, Skopeo
from exporter.workers import Workers


def sync(
    shipment: Shipment,
    *,
    client: Client,
    skopeo: Skopeo,
    stop: Callable[[int], None],
    pace: Pace | None = None,
    observe: Observer = silent,
) -> PushSummary:
    """Bring images to the destination as `push` does, by other means; see there.

    After each run every image of it is asked for: what counts is what the destination has.
    """
    pace = pace or Pace()
    client.ping()
    observe(Started(verb="push", images=shipment.size))
    tally = Tally(shipment, observe)
    tally.begin()
    if pace.fail_fast and tally.summary.failed:
        return tally.end()
    with pace.requests() as pool:
        absent = shipment.ask(client, pool, tally.present)
    batches: dict[str, list[Image]] = {}
    for image in absent:
        if len(image.copies) > 1 or image.copies[0].mode is not Mode.ALL:
            tally.failed(image, SourceError("skopeo sync cannot push its kind"), Journey())
        else:
            batches.setdefault(image.repository, []).append(image)
    _Sync(list(batches.values()), shipment, client, skopeo, tally).run(pace, stop)
    return tally.end()


class _Sync:
    """Runs `skopeo sync` on batches of images, each of one repository."""

    def __init__(
        self,
        batches: list[list[Image]],
        shipment: Shipment,
        client: Client,
        skopeo: Skopeo,
        tally: Tally,
    ) -> None:
        self._batches = batches
        self._shipment = shipment
        self._client = client
        self._skopeo = skopeo
        self._tally = tally
        self._journeys = [Journey() for _ in batches]

    def run(self, pace: Pace, stop: Callable[[int], None]) -> None:
        projects: dict[str, int] = {}
        queue = [
            Job(
                blobs=sorted({blob for image in batch for blob in image.blobs}),
                project=projects.setdefault(batch[0].project, len(projects)),
            )
            for batch in self._batches
        ]
        schedule = Schedule(
            queue, self._shipment.blobs.sizes, jobs_per_project=pace.jobs_per_project
        )
        Workers(
            schedule,
            self._attempt,
            self._report,
            jobs=pace.jobs,
            retry=pace.retry,
            fail_fast=pace.fail_fast,
        ).run(stop=stop)

    def _report(self, number: int, error: SkopeoDirError | None, _lost: list[int]) -> None:
        for image in self._batches[number]:
            if image.present:
                self._tally.arrived(image, self._journeys[number])
            elif error is not None:
                self._tally.failed(image, error, self._journeys[number])

    def _attempt(self, number: int) -> SkopeoDirError | None:
        """Run once for those of a batch that are not there; return what went wrong."""
        journey = self._journeys[number]
        started = time.monotonic()
        journey.tries += 1
        problem: SkopeoDirError | None = None
        try:
            with _tree([image for image in self._batches[number] if not image.present]) as tree:
                try:
                    self._skopeo.sync(tree, str(self._shipment.destination))
                except (DestinationError, SourceError) as error:
                    problem = error
            for image in self._batches[number]:
                reference = image.name.reference
                image.found = self._client.manifest_digest(image.repository, reference)
        except DestinationError as error:
            return error
        finally:
            journey.seconds += time.monotonic() - started
        if all(image.present for image in self._batches[number]):
            return None
        return problem or PermanentDestinationError("skopeo sync left it out")


@contextmanager
def _tree(images: list[Image]) -> Iterator[str]:
    """Give a directory that holds these images and no others, as symbolic links to their files."""
    with tempfile.TemporaryDirectory(prefix="skopeo-dir-") as tree:
        for image in images:
            directory = f"{tree}/{image.name}"
            os.makedirs(directory)
            for name in os.listdir(image.directory):
                os.symlink(f"{image.directory}/{name}", f"{directory}/{name}")
        yield os.path.realpath(tree)
