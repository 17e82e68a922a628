"""Push the images of OUT with skopeo: in parallel, every blob once, and only what is not there."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial

from exporter import dirlayout
from exporter.copies import Copy, copies, source_directory
from exporter.digest import Digest
from exporter.distribution import Client
from exporter.errors import (
    DestinationError,
    PermanentDestinationError,
    SkopeoDirError,
    SourceError,
    TemporaryDestinationError,
)
from exporter.events import Event, Failed, Observer, Pushed, Skipped, Started, silent
from exporter.plan import Selection, resolve
from exporter.reference import Destination, ImageName, RepositoryName
from exporter.schedule import Job, Schedule
from exporter.skopeo import Mode, Skopeo
from exporter.verdict import Verdict
from exporter.workers import Retry, Workers


class Schema1(StrEnum):
    """What becomes of Docker schema 1: its signature is not on disk, so its digest cannot stay."""

    CONVERT = "convert"
    SKIP = "skip"
    FAIL = "fail"


@dataclass(slots=True, kw_only=True)
class PushSummary:
    """What a push did.

    Attributes:
        images: Images that are at the destination now.
        present: Those of them that were there before.
        failed: Images that are not.
        skipped: Images that were not to be pushed (Docker schema 1, if so asked).
        mounted: Blobs taken over from another repository of the destination instead of sent.
    """

    images: int = 0
    present: int = 0
    failed: int = 0
    skipped: int = 0
    mounted: int = 0


@dataclass(slots=True, kw_only=True)
class _Image:
    """One image on its way.

    Attributes:
        name: What it is called in OUT.
        digest: Of its manifest.
        directory: Where it lies.
        repository: What its repository is called at the destination.
        copies: How it gets there.
        tries: How often skopeo was started for it.
        mounted: How many blobs were mounted for it.
        converted: The digest that it got instead, if it had to be converted.
    """

    name: ImageName
    digest: Digest
    directory: str
    repository: RepositoryName
    copies: list[Copy]
    tries: int = 0
    mounted: int = 0
    converted: Digest | None = None


@dataclass(slots=True)
class _Blobs:
    """Every blob of the run, numbered, and in which repositories of the destination it is."""

    numbers: dict[Digest, int] = field(default_factory=dict)
    sizes: list[int] = field(default_factory=list)
    places: list[set[RepositoryName]] = field(default_factory=list)

    def number(self, digest: Digest, size: int) -> int:
        """Return the number of a blob, a new one if it is met for the first time."""
        if digest not in self.numbers:
            self.numbers[digest] = len(self.sizes)
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
    schema1: Schema1 = Schema1.CONVERT,
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
        schema1: What becomes of Docker schema 1, which cannot arrive as it is.
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
    work = _Push(client, skopeo, destination, schema1, observe)
    loaded = (work.load(out, name, digest) for name, digest in named)
    absent = work.absent([image for image in loaded if image is not None], jobs)
    work.run(absent, jobs=jobs, retry=retry or Retry(), stop=stop)
    return work.summary


class _Push:
    """The state of one push."""

    def __init__(
        self,
        client: Client,
        skopeo: Skopeo,
        destination: Destination,
        schema1: Schema1,
        observe: Observer,
    ) -> None:
        self._client = client
        self._skopeo = skopeo
        self._destination = destination
        self._schema1 = schema1
        self._observe = observe
        self._blobs = _Blobs()
        self.summary = PushSummary()

    def load(self, out: str, name: ImageName, digest: Digest) -> _Image | None:
        """Read an image of OUT, and look at its files; None if it is not to be pushed."""
        try:
            repository = self._destination.repository(name.repository)
        except ValueError as error:
            self._tell(_failed(name, Verdict.INVALID_NAME, str(error)))
            return None
        directory = dirlayout.image_directory(out, name)
        closure = resolve(digest, partial(dirlayout.read_manifest, directory, root=digest))
        problems = closure.problems + dirlayout.blob_problems(directory, closure.blobs.values())
        for problem in problems:
            if not problem.verdict.exports:
                self._tell(_failed(name, problem.verdict, problem.message))
                return None
            if problem.verdict is Verdict.SCHEMA1 and self._schema1 is not Schema1.CONVERT:
                if self._schema1 is Schema1.SKIP:
                    self._tell(Skipped(name=str(name), reason=problem.message))
                else:
                    self._tell(_failed(name, problem.verdict, problem.message))
                return None
        for blob in closure.blobs.values():
            self._blobs.number(blob.digest, blob.size or 0)
        return _Image(
            name=name,
            digest=digest,
            directory=directory,
            repository=repository,
            copies=copies(closure),
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
        steps: list[tuple[_Image, Copy]] = []
        queue: list[Job] = []
        for image in images:
            first = len(queue)
            for copy in image.copies:
                blobs = [self._blobs.numbers[blob] for blob in copy.blobs]
                below = range(first, len(queue)) if copy.mode is Mode.INDEX_ONLY else ()
                queue.append(Job(blobs=blobs, after=below))
                steps.append((image, copy))
        schedule = Schedule(queue, self._blobs.sizes)
        for blob, places in enumerate(self._blobs.places):
            if places:
                schedule.settle(blob)

        failed: set[ImageName] = set()

        def report(number: int, error: SkopeoDirError | None, _lost: list[int]) -> None:
            image, copy = steps[number]
            if error is not None:
                if image.name not in failed:  # several of its copies may fail
                    self._tell(_failed(image.name, _word(error), error.message))
                failed.add(image.name)
            elif copy is image.copies[-1]:
                self._arrived(image, "pushed")
            else:
                self._settle(image, copy)

        def attempt(number: int) -> SkopeoDirError | None:
            return self._attempt(*steps[number])

        Workers(schedule, attempt, report, jobs=jobs, retry=retry).run(stop=stop)

    def _attempt(self, image: _Image, copy: Copy) -> SkopeoDirError | None:
        """Try one copy; return what went wrong with it."""
        reference = _reference(self._destination, image, copy)
        try:
            self._mount(image, copy)
            image.tries += 1
            with source_directory(image.directory, copy) as directory:
                pushed = self._skopeo.copy(directory, reference, mode=copy.mode)
        except (DestinationError, SourceError) as error:
            return error
        if copy.mode is Mode.CONVERT:
            image.converted = pushed
        elif pushed != copy.digest:
            return PermanentDestinationError(f"arrived as {pushed} instead of {copy.digest}")
        return None

    def _mount(self, image: _Image, copy: Copy) -> None:
        """Take over what another repository of the destination has, so that skopeo finds it there.

        Skopeo mounts only what its own cache has seen it upload; we know without a cache.

        Raises:
            TemporaryDestinationError: The destination is not answering.
        """
        for digest in copy.blobs:
            blob = self._blobs.numbers[digest]
            # A snapshot: another thread may add a place at any moment.
            places = tuple(self._blobs.places[blob])
            if places and image.repository not in places:
                try:
                    mounted = self._client.mount(image.repository, digest, places[0])
                except PermanentDestinationError:
                    continue  # skopeo will upload it, or say why it cannot
                if mounted:
                    self._blobs.places[blob].add(image.repository)
                    image.mounted += 1

    def _arrived(self, image: _Image, status: str) -> None:
        for copy in image.copies:
            self._settle(image, copy)
        self.summary.images += 1
        self.summary.present += status == "present"
        self.summary.mounted += image.mounted
        self._tell(
            Pushed(
                name=str(image.name),
                destination=_reference(self._destination, image, image.copies[-1]),
                digest=image.converted or image.digest,
                converted_from=image.digest if image.converted else "",
                status=status,
                mounted=image.mounted,
                tries=image.tries,
            )
        )

    def _settle(self, image: _Image, copy: Copy) -> None:
        for digest in copy.blobs:
            self._blobs.places[self._blobs.numbers[digest]].add(image.repository)

    def _tell(self, event: Event) -> None:
        self.summary.failed += isinstance(event, Failed)
        self.summary.skipped += isinstance(event, Skipped)
        self._observe(event)


def _reference(destination: Destination, image: _Image, copy: Copy) -> str:
    suffix = f"@{copy.digest}" if copy.by_digest else str(image.name)[len(image.name.repository) :]
    return f"{destination.host}/{image.repository}{suffix}"


def _failed(name: ImageName, error: str, message: str) -> Failed:
    return Failed(verb="push", name=str(name), error=error, message=message)


def _word(error: SkopeoDirError) -> str:
    if isinstance(error, SourceError):
        return "source"
    return "temporary" if isinstance(error, TemporaryDestinationError) else "permanent"
