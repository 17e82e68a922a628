"""Push the images of OUT with skopeo: in parallel, every blob once, and only what is not there."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future

from exporter.copies import Copy, children_first, source_directory
from exporter.digest import Digest
from exporter.distribution import Client
from exporter.errors import (
    DestinationError,
    PermanentDestinationError,
    SkopeoDirError,
    SourceError,
    TemporaryDestinationError,
)
from exporter.events import Observer, Started, silent
from exporter.outcome import Journey, PushSummary, Tally, failed_image, failed_unfit
from exporter.pace import Pace
from exporter.reference import RepositoryName
from exporter.schedule import Job, Schedule
from exporter.shipment import Forecast, Image, Shipment, read_image
from exporter.skopeo import ChildrenFirst, Mode, Skopeo, Turn
from exporter.workers import Workers


def push(
    shipment: Shipment,
    *,
    client: Client,
    skopeo: Skopeo,
    stop: Callable[[int], None],
    pace: Pace | None = None,
    observe: Observer = silent,
) -> PushSummary:
    """Bring images to the destination, each under the digest that it has here.

    The destination is the truth: a tag that already has the digest costs one HEAD. An image whose
    files are not what they must be fails before anything of it is sent. Temporary failures are
    tried again, permanent ones are reported once, and neither stops the others.

    Args:
        shipment: The images.
        client: Speaks to the destination.
        skopeo: Does the copying.
        stop: Ends the running skopeo processes, given the number of the signal that arrived.
        pace: How many at a time, and how patiently.
        observe: Is told about every image; called by one thread at a time.

    Raises:
        DestinationError: The destination cannot be used at all.
        Interrupted: A signal arrived (it must have been made an exception in the main thread).
    """
    pace = pace or Pace()
    client.ping()
    observe(Started(verb="push", images=shipment.size))
    return _Push(shipment, client, skopeo, pace, observe).run(stop)


def foresee(
    shipment: Shipment, *, client: Client, pace: Pace, observe: Observer = silent
) -> Forecast:
    """Say what `push` would do, by asking only; `observe` is told of what would fail.

    Raises:
        DestinationError: The destination cannot be used at all.
    """
    client.ping()
    with pace.requests() as pool:
        absent = shipment.ask(client, pool, lambda _image: None)
    for unfit in shipment.unfit:
        observe(failed_unfit(unfit))
    for image in absent:
        if isinstance(image.found, DestinationError):
            observe(failed_image(image, image.found, Journey()))
    return shipment.forecast()


class _Push:
    """The state of one push."""

    def __init__(
        self,
        shipment: Shipment,
        client: Client,
        skopeo: Skopeo,
        pace: Pace,
        observe: Observer,
    ) -> None:
        self._shipment = shipment
        self._blobs = shipment.blobs
        self._client = client
        self._skopeo = skopeo
        self._pace = pace
        self._pool = pace.requests()
        self._turns = threading.Semaphore(pace.jobs)
        self._tally = Tally(shipment, observe)
        self._lock = threading.Lock()  # of the blobs' places and of the mounts
        self._mounts: dict[tuple[RepositoryName, int], Future[bool]] = {}

    def run(self, stop: Callable[[int], None]) -> PushSummary:
        """Push images until each has arrived or failed."""
        self._tally.begin()
        try:
            if not (self._pace.fail_fast and self._tally.summary.failed):
                images = self._shipment.ask(self._client, self._pool, self._tally.present)
                self._run(images, stop)
        finally:
            self._pool.shutdown(wait=False, cancel_futures=True)
        return self._tally.end()

    def _run(self, images: list[Image], stop: Callable[[int], None]) -> None:
        pace = self._pace
        steps: list[tuple[Image, Copy, Journey]] = []
        journeys: list[list[Journey]] = []  # by the number of a step, those of its image
        queue: list[Job] = []
        projects: dict[str, int] = {}
        for image in images:
            first, own = len(steps), [Journey() for _ in image.copies]
            project = projects.setdefault(image.project, len(projects))
            for copy, journey in zip(image.copies, own, strict=True):
                blobs = [self._blobs.numbers[blob] for blob in copy.blobs]
                below = range(first, len(steps)) if copy.mode is Mode.INDEX_ONLY else ()
                queue.append(Job(blobs=blobs, project=project, after=below))
                steps.append((image, copy, journey))
                journeys.append(own)
        schedule = Schedule(queue, self._blobs.sizes, jobs_per_project=pace.jobs_per_project)
        for blob, places in enumerate(self._blobs.places):
            if places:
                schedule.settle(blob)
        failed: set[str] = set()

        def report(number: int, error: SkopeoDirError | None, _lost: list[int]) -> None:
            image, copy, _ = steps[number]
            whole = Journey.of(journeys[number])
            if error is None:
                for blob in copy.blobs:
                    self._place(self._blobs.numbers[blob], image.repository)
                if copy is image.copies[-1]:
                    self._tally.arrived(image, whole)
            elif image.reference not in failed:  # several of its copies may fail
                failed.add(image.reference)
                self._tally.failed(image, error, whole)

        def attempt(number: int) -> SkopeoDirError | None:
            return self._attempt(*steps[number], workers)

        # One image more than may be sent at a time: when its turn comes, its mounts are made and
        # its skopeo is up. Not if it might be one that must not start any more, or is being timed.
        is_one_ahead = not (pace.fail_fast or self._skopeo.options.command_timeout)
        workers = Workers(
            schedule,
            attempt,
            report,
            jobs=pace.jobs + is_one_ahead,
            retry=pace.retry,
            fail_fast=pace.fail_fast,
        )
        workers.run(stop=stop)

    def _attempt(
        self, image: Image, copy: Copy, journey: Journey, workers: Workers
    ) -> SkopeoDirError | None:
        """Try one copy; return what went wrong with it."""
        started = time.monotonic()
        journey.tries += 1
        try:
            if self._is_there(image, copy, journey):
                return None
            self._mount(image, copy, journey)
            journey.pushed = self._copy(image, copy, journey, workers)
        except (DestinationError, SourceError) as error:
            return error
        finally:
            journey.seconds += time.monotonic() - started
        if copy.mode is not Mode.CONVERT and journey.pushed != copy.digest:
            return PermanentDestinationError(
                f"arrived as {journey.pushed} instead of {copy.digest}"
            )
        return None

    def _is_there(self, image: Image, copy: Copy, journey: Journey) -> bool:
        """Tell if there is nothing to do after all.

        An image that was not answered for has failed its first try by that. From the second try
        on it is asked for again: it may have arrived and only the answer was lost, and Harbor
        refuses to take an immutable tag a second time.

        Raises:
            DestinationError: There is no answer.
        """
        if journey.tries == 1:
            if isinstance(image.found, DestinationError):
                raise image.found
            return False
        reference = copy.digest if copy.by_digest else image.name.reference
        return self._client.manifest_digest(image.repository, reference) == copy.digest

    def _mount(self, image: Image, copy: Copy, journey: Journey) -> None:
        """Take over what another repository of the destination has, so that skopeo finds it there.

        Skopeo mounts only what its own cache has seen it upload; we know without a cache. All at
        once, since each costs a round trip, and each once, however many images wait for it.

        Raises:
            TemporaryDestinationError: The destination is not answering.
        """
        asked: list[tuple[int, Future[bool], bool]] = []
        with self._lock:
            for digest in copy.blobs:
                blob = self._blobs.numbers[digest]
                places = self._blobs.places[blob]
                if not places or image.repository in places:
                    continue
                key = image.repository, blob
                is_first = key not in self._mounts
                if is_first:
                    self._mounts[key] = self._pool.submit(
                        self._client.mount, image.repository, digest, next(iter(places))
                    )
                asked.append((blob, self._mounts[key], is_first))
        failure: TemporaryDestinationError | None = None
        for blob, mount, is_first in asked:
            try:
                if not mount.result():
                    continue
            except PermanentDestinationError:
                continue  # skopeo will upload it, or say why it cannot
            except TemporaryDestinationError as error:
                failure = error
                with self._lock:
                    self._mounts.pop((image.repository, blob), None)
                continue
            self._place(blob, image.repository)
            if is_first:
                journey.mounted.add(blob)
        if failure is not None:
            raise failure

    def _copy(self, image: Image, copy: Copy, journey: Journey, workers: Workers) -> Digest:
        """Let skopeo send the rest; each blob is everyone's as soon as it has arrived."""

        def uploaded(digest: Digest) -> None:
            blob = self._blobs.numbers.get(digest)
            if blob is not None:
                journey.sent.add(blob)
                self._place(blob, image.repository)
                workers.settle(blob)

        def copied(part: Copy) -> Digest:
            turn = Turn(self._turns)
            try:
                with source_directory(image.directory, part) as directory:
                    return self._skopeo.copy(
                        directory,
                        image.reference_of(part),
                        mode=part.mode,
                        uploaded=uploaded,
                        throttled=workers.slow_down,
                        turn=turn,
                    )
            finally:
                journey.seconds -= turn.waited_seconds

        try:
            return copied(copy)
        except ChildrenFirst:
            parts = children_first(read_image(image.directory, copy.digest))
            return [copied(part) for part in parts][-1]

    def _place(self, blob: int, repository: RepositoryName) -> None:
        with self._lock:
            self._blobs.places[blob].add(repository)
