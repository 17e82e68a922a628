"""Who may run next, when images that share blobs are pushed in parallel and each blob only once.

Pure: no clock, no thread, no input or output. Images, blobs and projects are small integers.

**The model.** An image needs one slot of each of its resources, all at once, and gives them back
when it ends. A blob has one slot until it is settled, which means that it is at the destination:
from then on nobody needs it. A project has `jobs_per_project` slots. A blob that a single image
uses can neither block nor help another one, so it is forgotten at once.

**The order.** First the image with the greatest gain: for each of its unsettled blobs, the size
times the number of other images that share it. Then the one that stands first in the list, so
images listed by repository stay together by repository.

**The invariant.** Every image that waits for its turn is in exactly one heap: `_ready`, or the heap
of one resource that had no slot left when the image was looked at. A resource with a free slot
and a non-empty heap has called its first image: that one is in `_ready`, and when it has been
looked at, whatever came of it, the next one is called if there is still a slot. Gains only fall,
so a stale key is too good, never too bad, and is corrected when it comes up. Hence `next` returns
the best of all images that could start, and None only if there is none.

**No starvation.** What an image waits for is held by a running image, which settles its blobs
for good or fails; how often it may fail is for the caller to limit.

**The cost.** An image is looked at once, and again only after a blob of its own was settled or a
slot that it waited for came free. A look costs the unsettled blobs that are left, plus a heap
operation. Blobs shared together are settled together, so the total is a small multiple of all
references to shared blobs; in the worst graph imaginable, where every blob of an image is settled
by another image, that multiple is the number of blobs per image. A failure wakes those that wait
one by one, until one takes the slot, never all at once.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from heapq import heapify, heappop, heappush


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What the schedule must know of one image.

    Attributes:
        blobs: Configs and layers that may have to be sent, as indexes into `sizes`.
        project: The project at the destination, numbered from 0.
        after: Images that must arrive before this one (the inner indexes of a nested index), as
            indexes into `jobs`, all lower than its own: so there is no cycle.
    """

    blobs: Sequence[int]
    project: int = 0
    after: Sequence[int] = ()


class _State(IntEnum):
    WAITING = 0
    RUNNING = 1
    SUSPENDED = 2
    OVER = 3


class Schedule:
    """The state of one push. Not thread-safe: the caller holds a lock around every call.

    An image that `next` returned runs until `succeed`, `fail` or `suspend` is called for it, once;
    any other order of calls is a ValueError.

    Args:
        jobs: The images; their positions are their numbers. List them by repository.
        sizes: Bytes of each blob.
        jobs_per_project: How many images, at least 1, may run at a time in one project; None is no
            limit.

    Attributes:
        work: References to shared blobs looked at so far. Tests hold the cost above to it.

    Raises:
        ValueError: A job is `after` itself or a later one.
    """

    def __init__(
        self, jobs: Sequence[Job], sizes: Sequence[int], *, jobs_per_project: int | None = None
    ) -> None:
        users = [0] * len(sizes)
        for job in jobs:
            for blob in job.blobs:
                users[blob] += 1
        # Resources: the blobs, then the projects if they have a limit.
        limit, projects = jobs_per_project, 1 + max((job.project for job in jobs), default=-1)
        self._blob_count = len(sizes)
        self._slots = [1] * len(sizes) + ([] if limit is None else [limit] * projects)
        self._gain = [size * (count - 1) for size, count in zip(sizes, users, strict=True)]
        self._gain += [0] * (len(self._slots) - len(sizes))
        self._settled = bytearray(len(self._slots))
        self._needs = [[blob for blob in job.blobs if users[blob] > 1] for job in jobs]
        if limit is not None:
            for job, needs in zip(jobs, self._needs, strict=True):
                needs.append(len(sizes) + job.project)

        self._state = bytearray(len(jobs))
        self._left = len(jobs)
        self._unmet = [len(job.after) for job in jobs]
        self._followers: defaultdict[int, list[int]] = defaultdict(list)
        for image, job in enumerate(jobs):
            for earlier in job.after:
                if not 0 <= earlier < image:
                    raise ValueError(f"job {image} is after job {earlier}, which is not before it")
                self._followers[earlier].append(image)

        self._parked: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)
        self._called_by: dict[int, int] = {}
        self._ready = [self._key(image) for image, job in enumerate(jobs) if not job.after]
        heapify(self._ready)
        self.work = 0

    @property
    def done(self) -> bool:
        """Whether every image has arrived, has failed, or can never run."""
        return not self._left

    def next(self) -> int | None:
        """Start the best image that can start; it holds its resources from now on.

        Returns:
            The image; None if nothing can start before another call changes something.
        """
        while self._ready:
            popped = heappop(self._ready)
            image = popped[1]
            needs = [need for need in self._needs[image] if not self._settled[need]]
            self.work += len(self._needs[image])
            self._needs[image] = needs
            key = self._key(image)
            started = False
            if key != popped:
                heappush(self._ready, key)
            elif (lacking := self._lacking(needs)) is not None:
                heappush(self._parked[lacking], key)
            else:
                started = True
                self._state[image] = _State.RUNNING
                for need in needs:
                    self._slots[need] -= 1
            if (caller := self._called_by.pop(image, None)) is not None:
                self._call(caller)
            if started:
                return image
        return None

    def settle(self, blob: int) -> None:
        """Note that a blob is at the destination, so that nobody has to wait for it.

        Optional: `succeed` does it for all blobs of an image. It pays when a running image finds
        a shared blob already there long before its own last layer. Idempotent.
        """
        self._settled[blob] = True
        for key in self._parked.pop(blob, ()):
            heappush(self._ready, key)

    def succeed(self, image: int) -> None:
        """End a running image whose blobs are now all at the destination."""
        self._move(image, _State.RUNNING, to=_State.OVER)
        for need in self._needs[image]:
            if need < self._blob_count:
                self.settle(need)
        self._give_back(image)
        self._left -= 1
        for follower in self._followers.pop(image, ()):
            self._unmet[follower] -= 1
            if not self._unmet[follower]:
                heappush(self._ready, self._key(follower))

    def suspend(self, image: int) -> None:
        """End a try of a running image. Others may send its blobs until `resume` queues it."""
        self._move(image, _State.RUNNING, to=_State.SUSPENDED)
        self._give_back(image)

    def resume(self, image: int) -> None:
        """Queue a suspended image again."""
        self._move(image, _State.SUSPENDED, to=_State.WAITING)
        heappush(self._ready, self._key(image))

    def fail(self, image: int) -> list[int]:
        """Give up a running or suspended image.

        Returns:
            The images that can never run now, since they come after it, directly or not. Each is
            returned by one call only.
        """
        if self._state[image] == _State.RUNNING:
            self.suspend(image)
        self._move(image, _State.SUSPENDED, to=_State.OVER)
        lost = [image]
        for earlier in lost:
            for follower in self._followers.pop(earlier, ()):
                if self._state[follower] != _State.OVER:
                    self._state[follower] = _State.OVER
                    lost.append(follower)
        self._left -= len(lost)
        return lost[1:]

    def _key(self, image: int) -> tuple[int, int]:
        """The place of an image in a heap."""
        return -sum([self._gain[need] for need in self._needs[image]]), image

    def _lacking(self, needs: list[int]) -> int | None:
        """The first resource without a free slot."""
        for need in needs:
            if self._slots[need] < 1:
                return need
        return None

    def _move(self, image: int, state: _State, *, to: _State) -> None:
        if self._state[image] != state:
            is_now = _State(self._state[image]).name
            raise ValueError(f"image {image} is {is_now}, not {state.name}")
        self._state[image] = to

    def _give_back(self, image: int) -> None:
        for need in self._needs[image]:
            self._slots[need] += 1
            self._call(need)

    def _call(self, resource: int) -> None:
        """Let the first image that waits for a free slot be looked at again."""
        if self._slots[resource] > 0 and self._parked.get(resource):
            key = heappop(self._parked[resource])
            self._called_by[key[1]] = resource
            heappush(self._ready, key)
