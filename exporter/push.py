"""Push the images of OUT with skopeo: in parallel, every blob once, and only what is not there."""

import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field

from exporter import dirlayout
from exporter.digest import Digest
from exporter.distribution import Client
from exporter.errors import (
    DestinationError,
    PermanentDestinationError,
    SkopeoDirError,
    SourceError,
    TemporaryDestinationError,
)
from exporter.events import Failed, Observer, Pushed, Started, silent
from exporter.reference import ImageName
from exporter.schedule import Job, Schedule
from exporter.shipment import Forecast, Image, Shipment, Unfit, read_image
from exporter.skopeo import ChildrenFirst, Mode, Skopeo
from exporter.workers import Retry, Workers

REQUESTS_PER_JOB = 4
"""HEADs and mounts at a time, for each of `jobs`: they wait for a round trip and nothing else."""

MAX_REQUESTS = 64


@dataclass(slots=True, kw_only=True)
class PushSummary:
    """What a push did.

    Attributes:
        images: Images that are at the destination now.
        present: Those of them that were there before.
        failed: Images that are not.
        left: Images that were not tried, since another had failed.
        mounted: Blobs taken over from another repository of the destination instead of sent.
        bytes_sent: Of configs and layers that were uploaded for images that arrived.
        bytes_mounted: Of those that were mounted.
        bytes_present: Of those that their repository had already.
    """

    images: int = 0
    present: int = 0
    failed: int = 0
    left: int = 0
    mounted: int = 0
    bytes_sent: int = 0
    bytes_mounted: int = 0
    bytes_present: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How hard a push works.

    Attributes:
        jobs: How many skopeo processes at a time.
        jobs_per_project: How many of them into one project; no limit of its own if None.
        retry: How to deal with temporary failures.
        fail_fast: Start nothing more once an image has failed.
    """

    jobs: int = 8
    jobs_per_project: int | None = None
    retry: Retry = field(default_factory=Retry)
    fail_fast: bool = False

    def requests(self) -> ThreadPoolExecutor:
        """Return threads for requests of our own."""
        return ThreadPoolExecutor(min(self.jobs * REQUESTS_PER_JOB, MAX_REQUESTS))


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
    observe(Started(verb="push", images=len(shipment.images) + len(shipment.unfit)))
    pool = pace.requests()
    try:
        return _Push(shipment, client, skopeo, pool, observe).run(pace, stop)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


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
        observe(_unfit(unfit))
    for image in absent:
        if isinstance(image.found, DestinationError):
            observe(_failed(image, image.found, _Journey()))
    return shipment.forecast()


@dataclass(slots=True)
class _Journey:
    """What was done for one image: tries, seconds, and the numbers of blobs."""

    tries: int = 0
    seconds: float = 0.0
    sent: set[int] = field(default_factory=set)
    mounted: set[int] = field(default_factory=set)


class _Push:
    """The state of one push."""

    def __init__(
        self,
        shipment: Shipment,
        client: Client,
        skopeo: Skopeo,
        pool: Executor,
        observe: Observer,
    ) -> None:
        self._shipment = shipment
        self._blobs = shipment.blobs
        self._client = client
        self._skopeo = skopeo
        self._pool = pool
        self._observe = observe
        self._journeys: dict[ImageName, _Journey] = {}
        self._summary = PushSummary()

    def run(self, pace: Pace, stop: Callable[[int], None]) -> PushSummary:
        """Push images until each has arrived or failed."""
        for unfit in self._shipment.unfit:
            self._tell(_unfit(unfit))
        if pace.fail_fast and self._shipment.unfit:
            self._summary.left = len(self._shipment.images)
            return self._summary
        images = self._shipment.ask(self._client, self._pool, self._arrived)
        projects = {image.project: 0 for image in images}
        projects = {project: number for number, project in enumerate(projects)}
        schedule = Schedule(
            [Job(blobs=image.blobs, project=projects[image.project]) for image in images],
            self._blobs.sizes,
            jobs_per_project=pace.jobs_per_project,
        )
        for blob, places in enumerate(self._blobs.places):
            if places:
                schedule.settle(blob)

        def report(number: int, error: SkopeoDirError | None, _lost: list[int]) -> None:
            if error is None:
                self._shipment.settle(images[number])
                self._arrived(images[number])
            else:
                self._failed(images[number], error)

        def attempt(number: int) -> SkopeoDirError | None:
            return self._attempt(images[number], workers.settle)

        workers = Workers(
            schedule,
            attempt,
            report,
            jobs=pace.jobs,
            retry=pace.retry,
            fail_fast=pace.fail_fast,
        )
        workers.run(stop=stop)
        done = self._summary.images + self._summary.failed
        self._summary.left = len(self._shipment.images) + len(self._shipment.unfit) - done
        return self._summary

    def _attempt(self, image: Image, settle: Callable[[int], None]) -> SkopeoDirError | None:
        """Try to push one image; return what went wrong with it."""
        journey = self._journeys.setdefault(image.name, _Journey())
        started = time.monotonic()
        journey.tries += 1
        try:
            if self._is_there(image, journey):
                return None
            self._mount(image, journey)
            pushed = self._copy(image, journey, settle)
        except (DestinationError, SourceError) as error:
            return error
        finally:
            journey.seconds += time.monotonic() - started
        if pushed != image.digest:
            return PermanentDestinationError(f"arrived as {pushed} instead of {image.digest}")
        return None

    def _is_there(self, image: Image, journey: _Journey) -> bool:
        """Tell if there is nothing to do after all.

        An image that was not answered for has failed its first try by that. From the second try
        on it is asked for again: it may have arrived and only the answer was lost, and Harbor
        refuses to take an immutable tag a second time.

        Raises:
            DestinationError: There is no answer.
        """
        if journey.tries > 1:
            image.found = self._client.manifest_digest(image.repository, image.name.reference)
        elif isinstance(image.found, DestinationError):
            raise image.found
        return image.present

    def _mount(self, image: Image, journey: _Journey) -> None:
        """Take over what another repository of the destination has, so that skopeo finds it there.

        Skopeo mounts only what its own cache has seen it upload; we know without a cache. All at
        once, since each costs a round trip.

        Raises:
            TemporaryDestinationError: The destination is not answering.
        """

        def mount(blob: int) -> bool:
            # A copy: another thread may add a place at any moment.
            places = tuple(self._blobs.places[blob])
            if not places or image.repository in places:
                return False
            try:
                return self._client.mount(image.repository, self._blobs.digests[blob], places[0])
            except PermanentDestinationError:
                return False  # skopeo will upload it, or say why it cannot

        for blob, mounted in zip(image.blobs, self._pool.map(mount, image.blobs), strict=True):
            if mounted:
                self._blobs.places[blob].add(image.repository)
                journey.mounted.add(blob)

    def _copy(self, image: Image, journey: _Journey, settle: Callable[[int], None]) -> Digest:
        """Let skopeo send the rest; each blob is everyone's as soon as it has arrived."""

        def uploaded(digest: Digest) -> None:
            blob = self._blobs.numbers.get(digest)
            if blob is not None:
                journey.sent.add(blob)
                self._blobs.places[blob].add(image.repository)
                settle(blob)

        try:
            return self._skopeo.copy(image.directory, image.reference, uploaded=uploaded)
        except ChildrenFirst:
            return self._copy_children_first(image, uploaded)

    def _copy_children_first(self, image: Image, uploaded: Callable[[Digest], None]) -> Digest:
        """Push each manifest below an index by its digest, and then the index alone.

        In a directory of symbolic links, in which one manifest after another is `manifest.json`.
        """
        closure = read_image(image.directory, image.digest)
        repository, pushed = image.reference[: -len(str(image.name.reference)) - 1], image.digest
        with tempfile.TemporaryDirectory(prefix="skopeo-dir-") as relay:
            for name in os.listdir(image.directory):
                if name != dirlayout.MANIFEST:
                    os.symlink(f"{image.directory}/{name}", f"{relay}/{name}")
            for digest in closure.children_first():
                is_root = digest == image.digest
                name = dirlayout.MANIFEST if is_root else dirlayout.child_manifest(digest)
                os.symlink(f"{image.directory}/{name}", f"{relay}/{dirlayout.MANIFEST}")
                pushed = self._skopeo.copy(
                    relay,
                    image.reference if is_root else f"{repository}@{digest}",
                    mode=Mode.INDEX_ONLY if closure.manifests[digest].is_index else Mode.ALL,
                    uploaded=uploaded,
                )
                os.unlink(f"{relay}/{dirlayout.MANIFEST}")
        return pushed

    def _arrived(self, image: Image) -> None:
        journey = self._journeys.pop(image.name, _Journey())
        size, rest = self._blobs.size, set(image.blobs) - journey.sent - journey.mounted
        event = Pushed(
            name=str(image.name),
            destination=image.reference,
            digest=image.digest,
            status="pushed" if journey.tries else "present",
            mounted=len(journey.mounted),
            tries=journey.tries,
            seconds=round(journey.seconds, 3),
            bytes_sent=size(journey.sent),
            bytes_mounted=size(journey.mounted),
            bytes_present=size(rest),
        )
        self._summary.images += 1
        self._summary.present += event.status == "present"
        self._summary.mounted += event.mounted
        self._summary.bytes_sent += event.bytes_sent
        self._summary.bytes_mounted += event.bytes_mounted
        self._summary.bytes_present += event.bytes_present
        self._observe(event)

    def _failed(self, image: Image, error: SkopeoDirError) -> None:
        journey = self._journeys.pop(image.name, _Journey())
        self._tell(_failed(image, error, journey))

    def _tell(self, event: Failed) -> None:
        self._summary.failed += 1
        self._observe(event)


def _unfit(unfit: Unfit) -> Failed:
    return Failed(
        verb="push",
        name=str(unfit.name),
        error=unfit.problem.verdict,
        message=unfit.problem.message,
        digest=unfit.digest or "",
    )


def _failed(image: Image, error: SkopeoDirError, journey: _Journey) -> Failed:
    return Failed(
        verb="push",
        name=str(image.name),
        error=_word(error),
        message=error.message,
        digest=image.digest,
        destination=image.reference,
        tries=journey.tries,
        seconds=round(journey.seconds, 3),
    )


def _word(error: SkopeoDirError) -> str:
    if isinstance(error, SourceError):
        return "source"
    return "temporary" if isinstance(error, TemporaryDestinationError) else "permanent"
