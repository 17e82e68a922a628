"""What a push is about: the images, their blobs, and what the destination has of them already.

`--dry-run` shows it, `push` works it off.
"""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import partial

from exporter import dirlayout
from exporter.copies import Copy, copies
from exporter.digest import Digest
from exporter.distribution import Client
from exporter.errors import DestinationError
from exporter.plan import Closure, Selection, blob_problems, resolve
from exporter.reference import Destination, ImageName, RepositoryName
from exporter.skopeo import Mode
from exporter.storage import Storage, TaggedImage, UnreadableTag
from exporter.verdict import Problem, Verdict


class Schema1(StrEnum):
    """What becomes of Docker schema 1: its signature is not on disk, so its digest cannot stay."""

    CONVERT = "convert"
    SKIP = "skip"
    FAIL = "fail"


@dataclass(slots=True, kw_only=True)
class Image:
    """An image that can be pushed.

    Attributes:
        name: In OUT.
        digest: Of its manifest.
        directory: The skopeo `dir:`.
        repository: What its repository is called at the destination.
        reference: `host/repository:tag`, or `host/repository@digest`.
        copies: What brings it there, in order; the last is the image itself.
        blobs: Its configs and layers, each once, by number.
        manifests: How many it consists of: 1, or an index and all below it.
        lookups: Configs and layers over all its manifests: skopeo asks for each of them.
        found: What the destination has under this name: a digest, None, or why that is not known.
    """

    name: ImageName
    digest: Digest
    directory: str
    repository: RepositoryName
    reference: str
    copies: tuple[Copy, ...]
    blobs: tuple[int, ...]
    manifests: int
    lookups: int
    found: Digest | DestinationError | None = None

    @property
    def present(self) -> bool:
        """Whether the destination has it, under its name and digest."""
        return self.found == self.digest

    @property
    def converted(self) -> bool:
        """Whether it gets another digest on its way."""
        return self.copies[-1].mode is Mode.CONVERT

    def reference_of(self, copy: Copy) -> str:
        """Return where one of its copies goes: `host/repository`, then `:tag` or `@digest`."""
        if not copy.by_digest:
            return self.reference
        return f"{self.reference.partition('/')[0]}/{self.repository}@{copy.digest}"

    @property
    def project(self) -> str:
        """What Harbor calls its project: the first component of the repository."""
        return self.repository.partition("/")[0]


@dataclass(slots=True)
class Blobs:
    """Every blob of the images, numbered in the order met.

    Attributes:
        numbers: Number of a digest.
        digests: Digest of a number.
        sizes: Bytes of a number.
        configs: Numbers that are configs.
        places: The repositories of the destination that are known to have it.
    """

    numbers: dict[Digest, int] = field(default_factory=dict)
    digests: list[Digest] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    configs: set[int] = field(default_factory=set)
    places: list[set[RepositoryName]] = field(default_factory=list)

    def number(self, digest: Digest, size: int) -> int:
        """Return the number of a blob, a new one if it is met for the first time."""
        if digest not in self.numbers:
            self.numbers[digest] = len(self.digests)
            self.digests.append(digest)
            self.sizes.append(size)
            self.places.append(set())
        return self.numbers[digest]

    def size(self, numbers: Iterable[int]) -> int:
        """Return the bytes of some of them together."""
        return sum([self.sizes[number] for number in numbers])


@dataclass(frozen=True, slots=True, kw_only=True)
class Unfit:
    """An image that cannot be pushed as it is: its name and digest, if it has any, and why."""

    name: ImageName | str
    digest: Digest | None = None
    problem: Problem


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What a push would do, as far as the images that are at the destination tell.

    What the destination has besides them (from others, or from a push that was cut off within an
    image) is found only by the push itself, and makes `bytes_to_send` smaller.

    Attributes:
        images_to_push: Images that the destination lacks, or has another one for.
        images_present: Images that it has.
        images_to_convert: Those of the images to push that get another digest.
        images_skipped: Images that are left out, as asked.
        images_failing: Images that cannot be pushed as they are, or that the destination did not
            answer for (those count as to be pushed, too).
        blobs_to_send: Configs and layers to upload, each once.
        bytes_to_send: Their bytes.
        blobs_to_mount: Pairs of repository and blob to be taken over from another repository.
        bytes_to_mount: Their bytes.
        bytes_present: Of blobs that are needed and in their repository already, once for each.
        projects: First components of the repositories to be pushed to.
        requests: What we and skopeo will ask if nothing has to be tried twice; tokens, and how
            we first find out what the destination speaks, left out.
    """

    images_to_push: int = 0
    images_present: int = 0
    images_to_convert: int = 0
    images_skipped: int = 0
    images_failing: int = 0
    blobs_to_send: int = 0
    bytes_to_send: int = 0
    blobs_to_mount: int = 0
    bytes_to_mount: int = 0
    bytes_present: int = 0
    projects: tuple[str, ...] = ()
    requests: int = 0


class Shipment:
    """The images of one push.

    Attributes:
        images: Those that can be pushed, sorted by name.
        destination: Where they go.
        unfit: Those that cannot.
        skipped: Those that are left out, as asked: Docker schema 1.
        blobs: The blobs of `images`.
    """

    def __init__(self, out: str, destination: Destination, schema1: Schema1) -> None:
        self._out = out
        self._schema1 = schema1
        self.destination = destination
        self.images: list[Image] = []
        self.unfit: list[Unfit] = []
        self.skipped: list[Unfit] = []
        self.blobs = Blobs()

    @property
    def size(self) -> int:
        """How many images it is about."""
        return len(self.images) + len(self.unfit) + len(self.skipped)

    @classmethod
    def of_out(
        cls,
        out: str,
        destination: Destination,
        selection: Selection | None = None,
        *,
        schema1: Schema1 = Schema1.CONVERT,
    ) -> "Shipment":
        """Read the images of OUT and look at their files.

        Raises:
            UsageError: OUT holds no images, or none matches.
        """
        images = (selection or Selection()).pick(
            dirlayout.images(out).items(), lambda item: item[0]
        )
        shipment = cls(out, destination, schema1)
        for name, digest in images:
            shipment._add(name, digest, partial(_read_out, out, name, digest))
        return shipment

    @classmethod
    def of_storage(
        cls,
        storage: Storage,
        out: str,
        destination: Destination,
        found: tuple[Sequence[TaggedImage], Sequence[UnreadableTag]],
        *,
        schema1: Schema1 = Schema1.CONVERT,
    ) -> "Shipment":
        """Read images where they come from, as if they had been exported to OUT already.

        Args:
            storage: Where they come from.
            out: Where they would lie.
            destination: Where they go.
            found: What `select` returned.
            schema1: What becomes of Docker schema 1.
        """
        images, unreadable = found
        shipment = cls(out, destination, schema1)
        shipment.unfit += [Unfit(name=tag.name, problem=tag.problem) for tag in unreadable]
        for image in sorted(images, key=lambda image: str(image.name)):
            read = partial(_read_storage, storage, image.name, image.digest)
            shipment._add(image.name, image.digest, read)
        return shipment

    def _add(
        self, name: ImageName, digest: Digest, read: Callable[[], tuple[Closure, Sequence[Problem]]]
    ) -> None:
        try:
            repository = self.destination.repository(name.repository)
            directory = dirlayout.image_directory(self._out, name)
        except ValueError as error:
            problem = Problem(Verdict.INVALID_NAME, "", str(error))
            self.unfit.append(Unfit(name=name, digest=digest, problem=problem))
            return
        closure, problems = read()
        for problem in problems:
            unfit = Unfit(name=name, digest=digest, problem=problem)
            if problem.verdict is Verdict.SCHEMA1 and self._schema1 is Schema1.SKIP:
                self.skipped.append(unfit)
                return
            old = problem.verdict is Verdict.SCHEMA1 and self._schema1 is Schema1.FAIL
            if old or not problem.verdict.exports:
                self.unfit.append(unfit)
                return
        numbers = [
            self.blobs.number(blob.digest, blob.size or 0) for blob in closure.blobs.values()
        ]
        lookups = 0
        for manifest in closure.manifests.values():
            if manifest.config is not None:
                self.blobs.configs.add(self.blobs.numbers[manifest.config.digest])
            lookups += sum(1 for _ in manifest.blobs())
        self.images.append(
            Image(
                name=name,
                digest=digest,
                directory=directory,
                repository=repository,
                reference=f"{self.destination.host}/{ImageName(repository, name.reference)}",
                copies=tuple([self._shared(copy) for copy in copies(closure)]),
                blobs=tuple(numbers),
                manifests=len(closure.manifests),
                lookups=lookups,
            )
        )

    def _shared(self, copy: Copy) -> Copy:
        """Return the copy with one string for each digest in the whole shipment: memory."""
        blobs = self.blobs
        return replace(copy, blobs=tuple([blobs.digests[blobs.numbers[b]] for b in copy.blobs]))

    def ask(self, client: Client, pool: Executor, arrived: Callable[[Image], None]) -> list[Image]:
        """Ask the destination for every image, by one HEAD each, and learn where blobs are.

        Args:
            client: Speaks to the destination.
            pool: Asks for several at a time.
            arrived: Is told of every image that is there.

        Returns:
            The others.
        """
        for image, found in zip(
            self.images, pool.map(partial(_find, client), self.images), strict=True
        ):
            image.found = found
            if image.present:
                self.settle(image)
                arrived(image)
        return [image for image in self.images if not image.present]

    def settle(self, image: Image) -> None:
        """Note that all blobs of an image are in its repository."""
        for blob in image.blobs:
            self.blobs.places[blob].add(image.repository)

    def forecast(self) -> Forecast:
        """Return what a push would do; call `ask` before."""
        blobs = self.blobs
        absent = [image for image in self.images if not image.present]
        pairs = {(blob, image.repository) for image in absent for blob in image.blobs}
        sent = {blob for blob, _ in pairs if not blobs.places[blob]}
        present = [blob for blob, repository in pairs if repository in blobs.places[blob]]
        # Whoever sends a blob first needs no mount for it.
        mounted = blobs.size(blob for blob, _ in pairs) - blobs.size(sent) - blobs.size(present)
        mounts = len(pairs) - len(sent) - len(present)
        # skopeo: a ping for each copy, a HEAD for every blob, four more requests (three for a
        # config) to send one, a PUT for every manifest.
        requests = len(self.images) + mounts + 4 * len(sent) - len(sent & blobs.configs)
        requests += sum([len(image.copies) + image.lookups + image.manifests for image in absent])
        return Forecast(
            images_to_push=len(absent),
            images_present=len(self.images) - len(absent),
            images_to_convert=sum(image.converted for image in absent),
            images_skipped=len(self.skipped),
            images_failing=len(self.unfit)
            + sum(isinstance(image.found, DestinationError) for image in absent),
            blobs_to_send=len(sent),
            bytes_to_send=blobs.size(sent),
            blobs_to_mount=mounts,
            bytes_to_mount=mounted,
            bytes_present=blobs.size(present),
            projects=tuple(sorted({image.project for image in absent})),
            requests=requests,
        )


def _find(client: Client, image: Image) -> Digest | DestinationError | None:
    try:
        return client.manifest_digest(image.repository, image.name.reference)
    except DestinationError as error:
        return error


def read_image(directory: str, digest: Digest) -> Closure:
    """Return what an image directory's manifests say."""
    return resolve(digest, partial(dirlayout.read_manifest, directory, root=digest))


def _read_out(out: str, name: ImageName, digest: Digest) -> tuple[Closure, Sequence[Problem]]:
    directory = dirlayout.image_directory(out, name)
    closure = read_image(directory, digest)
    blobs = dirlayout.blob_problems(directory, closure.blobs.values())
    return closure, [*closure.problems, *blobs]


def _read_storage(
    storage: Storage, name: ImageName, digest: Digest
) -> tuple[Closure, Sequence[Problem]]:
    closure = resolve(digest, storage.manifest)
    return closure, [*closure.problems, *blob_problems(closure, storage, name.repository)]
