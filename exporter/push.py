"""Push the images of OUT with skopeo: in parallel, every blob once, and only what is not there."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

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
from exporter.events import Event, Failed, Observer, Pushed, Started, silent
from exporter.plan import Selection, resolve
from exporter.reference import Destination, ImageName, RepositoryName
from exporter.schedule import Job, Schedule
from exporter.skopeo import Skopeo
from exporter.verdict import Verdict
from exporter.workers import Retry, Workers


@dataclass(slots=True, kw_only=True)
class PushSummary:
    """What a push did.

    Attributes:
        images: Images that are at the destination now.
        present: Those of them that were there before.
        failed: Images that are not.
        mounted: Blobs taken over from another repository of the destination instead of sent.
    """

    images: int = 0
    present: int = 0
    failed: int = 0
    mounted: int = 0


@dataclass(slots=True, kw_only=True)
class _Image:
    """One image on its way.

    Attributes:
        blobs: Its configs and layers, by number.
        tries: How often skopeo was started for it.
        mounted: How many blobs were mounted for it.
    """

    name: ImageName
    digest: Digest
    directory: str
    repository: RepositoryName
    reference: str
    blobs: tuple[int, ...]
    tries: int = 0
    mounted: int = 0


@dataclass(slots=True)
class _Blobs:
    """Every blob of the run, numbered, and in which repositories of the destination it is."""

    numbers: dict[Digest, int] = field(default_factory=dict)
    digests: list[Digest] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    places: list[set[RepositoryName]] = field(default_factory=list)

    def number(self, digest: Digest, size: int) -> int:
        """Return the number of a blob, a new one if it is met for the first time."""
        if digest not in self.numbers:
            self.numbers[digest] = len(self.digests)
            self.digests.append(digest)
            self.sizes.append(size)
            self.places.append(set())
        return self.numbers[digest]


def push(
    out: str,
    destination: Destination,
    *,
    client: Client,
    skopeo: Skopeo,
    stop: Callable[[int], None],
    selection: Selection | None = None,
    jobs: int = 8,
    retry: Retry | None = None,
    observe: Observer = silent,
) -> PushSummary:
    """Bring the images of OUT to the destination, each under the digest that it has here.

    The destination is the truth: a tag that already has the digest costs one HEAD. An image whose
    files are not what they must be fails before anything of it is sent. Temporary failures are
    tried again, permanent ones are reported once, and neither stops the others.

    Args:
        out: Directory of images.
        destination: Where to.
        client: Speaks to its host.
        skopeo: Does the copying.
        stop: Ends the running skopeo processes, given the number of the signal that arrived.
        selection: Which images; all by default.
        jobs: How many skopeo processes at a time.
        retry: How to deal with temporary failures.
        observe: Is told about every image; called by one thread at a time.

    Raises:
        UsageError: OUT holds no images, or none matches.
        DestinationError: The destination cannot be used at all.
        Interrupted: A signal arrived (it must have been made an exception in the main thread).
    """
    named = (selection or Selection()).pick(dirlayout.images(out).items(), lambda item: item[0])
    client.ping()
    observe(Started(verb="push", images=len(named)))
    work = _Push(client, skopeo, observe)
    loaded = (work.load(out, destination, name, digest) for name, digest in named)
    absent = work.absent([image for image in loaded if image is not None], jobs)
    work.run(absent, jobs=jobs, retry=retry or Retry(), stop=stop)
    return work.summary


class _Push:
    """The state of one push."""

    def __init__(self, client: Client, skopeo: Skopeo, observe: Observer) -> None:
        self._client = client
        self._skopeo = skopeo
        self._observe = observe
        self._blobs = _Blobs()
        self.summary = PushSummary()

    def load(
        self, out: str, destination: Destination, name: ImageName, digest: Digest
    ) -> _Image | None:
        """Read an image of OUT, and look at its files; None if it cannot be pushed as it is."""
        try:
            repository = destination.repository(name.repository)
        except ValueError as error:
            self._tell(_failed(name, Verdict.INVALID_NAME, str(error)))
            return None
        directory = dirlayout.image_directory(out, name)
        closure = resolve(digest, partial(dirlayout.read_manifest, directory, root=digest))
        problems = closure.problems or dirlayout.blob_problems(directory, closure.blobs.values())
        if problems:
            self._tell(_failed(name, problems[0].verdict, problems[0].message))
            return None
        return _Image(
            name=name,
            digest=digest,
            directory=directory,
            repository=repository,
            reference=f"{destination.host}/{repository}{str(name)[len(name.repository) :]}",
            blobs=tuple(self._blobs.number(b.digest, b.size) for b in closure.blobs.values()),
        )

    def absent(self, images: list[_Image], jobs: int) -> list[_Image]:
        """Return the images that the destination does not have, and learn where blobs are."""
        absent: list[_Image] = []
        with ThreadPoolExecutor(jobs) as pool:
            try:
                for image, there in zip(images, pool.map(self._is_there, images), strict=True):
                    if there:
                        self._arrived(image, "present")
                    else:
                        absent.append(image)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return absent

    def _is_there(self, image: _Image) -> bool:
        try:
            return (
                self._client.manifest_digest(image.repository, image.name.reference) == image.digest
            )
        except DestinationError:
            return False  # its own push will say what is wrong, and try again if that may help

    def run(
        self, images: list[_Image], *, jobs: int, retry: Retry, stop: Callable[[int], None]
    ) -> None:
        """Push images until each has arrived or failed."""
        schedule = Schedule([Job(blobs=image.blobs) for image in images], self._blobs.sizes)
        for blob, places in enumerate(self._blobs.places):
            if places:
                schedule.settle(blob)

        def report(number: int, error: SkopeoDirError | None, _lost: list[int]) -> None:
            image = images[number]
            if error is None:
                self._arrived(image, "pushed")
            else:
                self._tell(_failed(image.name, _word(error), error.message))

        def attempt(number: int) -> SkopeoDirError | None:
            return self._attempt(images[number])

        Workers(schedule, attempt, report, jobs=jobs, retry=retry).run(stop=stop)

    def _attempt(self, image: _Image) -> SkopeoDirError | None:
        """Try to push one image; return what went wrong with it."""
        try:
            self._mount(image)
            image.tries += 1
            pushed = self._skopeo.copy(image.directory, image.reference)
        except (DestinationError, SourceError) as error:
            return error
        if pushed != image.digest:
            return PermanentDestinationError(f"arrived as {pushed} instead of {image.digest}")
        return None

    def _mount(self, image: _Image) -> None:
        """Take over what another repository of the destination has, so that skopeo finds it there.

        Skopeo mounts only what its own cache has seen it upload; we know without a cache.

        Raises:
            TemporaryDestinationError: The destination is not answering.
        """
        for blob in image.blobs:
            # A copy: another thread may add a place at any moment.
            places = tuple(self._blobs.places[blob])
            if places and image.repository not in places:
                try:
                    digest = self._blobs.digests[blob]
                    mounted = self._client.mount(image.repository, digest, places[0])
                except PermanentDestinationError:
                    continue  # skopeo will upload it, or say why it cannot
                if mounted:
                    self._blobs.places[blob].add(image.repository)
                    image.mounted += 1

    def _arrived(self, image: _Image, status: str) -> None:
        for blob in image.blobs:
            self._blobs.places[blob].add(image.repository)
        self.summary.images += 1
        self.summary.present += status == "present"
        self.summary.mounted += image.mounted
        self._tell(
            Pushed(
                name=str(image.name),
                destination=image.reference,
                digest=image.digest,
                status=status,
                mounted=image.mounted,
                tries=image.tries,
            )
        )

    def _tell(self, event: Event) -> None:
        self.summary.failed += isinstance(event, Failed)
        self._observe(event)


def _failed(name: ImageName, error: str, message: str) -> Failed:
    return Failed(verb="push", name=str(name), error=error, message=message)


def _word(error: SkopeoDirError) -> str:
    if isinstance(error, SourceError):
        return "source"
    return "temporary" if isinstance(error, TemporaryDestinationError) else "permanent"
