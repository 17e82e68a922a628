"""What becomes of the images of a push: counted, and told as events."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from exporter.digest import Digest
from exporter.errors import SkopeoDirError, SourceError, TemporaryDestinationError
from exporter.events import Failed, Observer, Pushed, Skipped
from exporter.shipment import Image, Shipment, Unfit


@dataclass(slots=True, kw_only=True)
class PushSummary:
    """What a push did.

    Attributes:
        images: Images that are at the destination now.
        present: Those of them that were there before.
        failed: Images that are not.
        skipped: Images that were not to be pushed (Docker schema 1, if so asked).
        left: Images that were not tried, since another had failed.
        mounted: Blobs taken over from another repository of the destination instead of sent.
        bytes_sent: Of configs and layers that were uploaded for images that arrived.
        bytes_mounted: Of those that were mounted.
        bytes_present: Of those that their repository had already.
    """

    images: int = 0
    present: int = 0
    failed: int = 0
    skipped: int = 0
    left: int = 0
    mounted: int = 0
    bytes_sent: int = 0
    bytes_mounted: int = 0
    bytes_present: int = 0


@dataclass(slots=True)
class Journey:
    """What was done for an image, or for one of its copies.

    Attributes:
        tries: How often it was tried.
        seconds: What the tries took.
        sent: Numbers of the blobs that were uploaded.
        mounted: Numbers of the blobs that were mounted.
        pushed: The digest that was pushed last.
    """

    tries: int = 0
    seconds: float = 0.0
    sent: set[int] = field(default_factory=set)
    mounted: set[int] = field(default_factory=set)
    pushed: Digest | None = None

    @classmethod
    def of(cls, parts: Iterable["Journey"]) -> "Journey":
        """Return what was done in all, by copies in their order."""
        whole = cls()
        for part in parts:
            whole.tries += part.tries
            whole.seconds += part.seconds
            whole.sent |= part.sent
            whole.mounted |= part.mounted
            whole.pushed = part.pushed
        return whole


class Tally:
    """Counts how the images of a shipment end, and tells it. One thread at a time.

    Attributes:
        summary: The count so far.
    """

    def __init__(self, shipment: Shipment, observe: Observer) -> None:
        self._shipment = shipment
        self._observe = observe
        self.summary = PushSummary()

    def begin(self) -> None:
        """Tell of the images that are not pushed at all."""
        for unfit in self._shipment.skipped:
            self.summary.skipped += 1
            self._observe(Skipped(name=str(unfit.name), reason=unfit.problem.message))
        for unfit in self._shipment.unfit:
            self.summary.failed += 1
            self._observe(failed_unfit(unfit))

    def end(self) -> PushSummary:
        """Return the count; what has not ended is left."""
        done = self.summary.images + self.summary.failed + self.summary.skipped
        self.summary.left = self._shipment.size - done
        return self.summary

    def present(self, image: Image) -> None:
        """Tell of an image that was there before."""
        self.arrived(image, Journey())

    def arrived(self, image: Image, journey: Journey) -> None:
        """Tell of an image that is at the destination now."""
        size = self._shipment.blobs.size
        event = Pushed(
            name=str(image.name),
            destination=image.reference,
            digest=journey.pushed or image.digest,
            converted_from=image.digest if image.converted and journey.pushed else "",
            status="pushed" if journey.tries else "present",
            mounted=len(journey.mounted),
            tries=journey.tries,
            seconds=round(journey.seconds, 3),
            bytes_sent=size(journey.sent),
            bytes_mounted=size(journey.mounted),
            bytes_present=size(set(image.blobs) - journey.sent - journey.mounted),
        )
        self.summary.images += 1
        self.summary.present += event.status == "present"
        self.summary.mounted += event.mounted
        self.summary.bytes_sent += event.bytes_sent
        self.summary.bytes_mounted += event.bytes_mounted
        self.summary.bytes_present += event.bytes_present
        self._observe(event)

    def failed(self, image: Image, error: SkopeoDirError, journey: Journey) -> None:
        """Tell of an image that is given up."""
        self.summary.failed += 1
        self._observe(failed_image(image, error, journey))


def failed_unfit(unfit: Unfit) -> Failed:
    """Return the event for an image that cannot be pushed as it is."""
    return Failed(
        verb="push",
        name=str(unfit.name),
        error=unfit.problem.verdict,
        message=unfit.problem.message,
        digest=unfit.digest or "",
    )


def failed_image(image: Image, error: SkopeoDirError, journey: Journey) -> Failed:
    """Return the event for an image that did not arrive."""
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
