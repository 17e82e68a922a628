"""Laws of exporter.schedule, most of them against a model that looks at everything each time."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter.schedule import Job, Schedule

MB = 1_000_000


def started(schedule: Schedule) -> list[int]:
    """Start everything that can start now."""
    return list(iter(schedule.next, None))


# Examples


def test_images_without_a_common_blob_start_together_in_their_order() -> None:
    schedule = Schedule([Job(blobs=[0]), Job(blobs=[1]), Job(blobs=[2])], [MB] * 3)
    assert started(schedule) == [0, 1, 2]


def test_an_image_waits_while_its_blob_is_being_sent_and_starts_when_it_has_arrived() -> None:
    schedule = Schedule([Job(blobs=[0, 1]), Job(blobs=[0, 2]), Job(blobs=[0, 3])], [MB] * 4)
    assert started(schedule) == [0]
    schedule.succeed(0)
    assert started(schedule) == [1, 2]


def test_a_failed_image_lets_exactly_one_of_those_that_wait_send_the_blob() -> None:
    schedule = Schedule([Job(blobs=[0]), Job(blobs=[0]), Job(blobs=[0])], [MB])
    assert started(schedule) == [0]
    assert schedule.fail(0) == []
    assert started(schedule) == [1]


def test_a_settled_blob_holds_nobody_up_while_its_image_still_runs() -> None:
    schedule = Schedule([Job(blobs=[0, 1]), Job(blobs=[0, 2]), Job(blobs=[1])], [MB] * 3)
    assert started(schedule) == [0]
    schedule.settle(0)
    assert started(schedule) == [1]


def test_the_image_that_unblocks_most_waiting_bytes_goes_first() -> None:
    small, large, own = 0, 1, 2
    jobs = [
        Job(blobs=[own]),
        Job(blobs=[small]),
        Job(blobs=[small]),
        Job(blobs=[small]),
        Job(blobs=[large]),
        Job(blobs=[large]),
    ]
    schedule = Schedule(jobs, [1 * MB, 3 * MB, 100 * MB])
    assert started(schedule) == [4, 1, 0]


def test_a_blob_that_has_arrived_no_longer_gives_an_image_precedence() -> None:
    base, shared = 0, 1
    jobs = [
        Job(blobs=[base]),
        Job(blobs=[base]),
        Job(blobs=[base, shared]),
        Job(blobs=[base, shared]),
    ]
    schedule = Schedule(jobs, [100 * MB, MB])
    first = started(schedule)
    assert first == [2]
    schedule.settle(base)
    assert schedule.next() == 0
    assert schedule.next() == 1
    schedule.succeed(2)
    assert started(schedule) == [3]


def test_a_suspended_image_frees_its_blobs_and_runs_again_only_when_resumed() -> None:
    schedule = Schedule([Job(blobs=[0]), Job(blobs=[0])], [MB])
    assert started(schedule) == [0]
    schedule.suspend(0)
    assert started(schedule) == [1]
    schedule.succeed(1)
    assert (started(schedule), schedule.done) == ([], False)
    schedule.resume(0)
    assert started(schedule) == [0]
    schedule.succeed(0)
    assert schedule.done


def test_an_outer_index_runs_after_all_of_its_inner_ones() -> None:
    schedule = Schedule([Job(blobs=[0]), Job(blobs=[1]), Job(blobs=[], after=[0, 1])], [MB, MB])
    assert started(schedule) == [0, 1]
    schedule.succeed(1)
    assert started(schedule) == []
    schedule.succeed(0)
    assert started(schedule) == [2]


def test_images_that_can_never_run_are_named_once_by_the_failure_that_decides_it() -> None:
    jobs = [Job(blobs=[]), Job(blobs=[]), Job(blobs=[], after=[0, 1]), Job(blobs=[], after=[2])]
    schedule = Schedule(jobs, [])
    assert started(schedule) == [0, 1]
    assert schedule.fail(1) == [2, 3]
    assert schedule.fail(0) == []
    assert schedule.done


def test_a_suspended_image_can_be_given_up() -> None:
    schedule = Schedule([Job(blobs=[]), Job(blobs=[], after=[0])], [])
    assert started(schedule) == [0]
    schedule.suspend(0)
    assert schedule.fail(0) == [1]
    assert schedule.done


def test_a_full_project_does_not_hold_up_another_project() -> None:
    jobs = [Job(blobs=[], project=p) for p in (0, 0, 0, 1, 1)]
    schedule = Schedule(jobs, [], jobs_per_project=1)
    assert started(schedule) == [0, 3]
    schedule.succeed(0)
    assert started(schedule) == [1]


def test_a_stale_gain_does_not_jump_the_queue_of_a_project() -> None:
    jobs = [Job(blobs=[]), Job(blobs=[0]), Job(blobs=[1]), Job(blobs=[0, 1], project=1)]
    schedule = Schedule(jobs, [1 * MB, 3 * MB], jobs_per_project=1)
    assert [schedule.next(), schedule.next()] == [3, 0]
    schedule.suspend(3)
    assert schedule.next() is None  # 2 and 1 wait for the project, 2 because of its gain
    schedule.settle(1)
    schedule.succeed(0)
    assert schedule.next() == 1


def test_nothing_to_push_is_done_at_once() -> None:
    schedule = Schedule([], [], jobs_per_project=1)
    assert (schedule.next(), schedule.done) == (None, True)


@pytest.mark.parametrize("earlier", [-1, 1, 2])
def test_a_job_cannot_come_after_itself_or_a_later_one(earlier: int) -> None:
    with pytest.raises(ValueError, match=f"job 1 is after job {earlier}, which is not before it"):
        Schedule([Job(blobs=[]), Job(blobs=[], after=[earlier]), Job(blobs=[])], [])


def test_an_image_ends_once() -> None:
    schedule = Schedule([Job(blobs=[])], [])
    assert started(schedule) == [0]
    schedule.succeed(0)
    for again in (schedule.succeed, schedule.fail, schedule.suspend, schedule.resume):
        with pytest.raises(ValueError, match="image 0 is OVER"):
            again(0)


# Properties


@dataclass
class Model:
    """The rules, word by word: quadratic, and obviously right."""

    jobs: Sequence[Job]
    sizes: Sequence[int]
    jobs_per_project: int | None
    settled: set[int] = field(default_factory=set)
    running: set[int] = field(default_factory=set)
    suspended: set[int] = field(default_factory=set)
    succeeded: set[int] = field(default_factory=set)
    failed: set[int] = field(default_factory=set)

    def unsettled(self, image: int) -> set[int]:
        return set(self.jobs[image].blobs) - self.settled

    def can_start(self, image: int) -> bool:
        job = self.jobs[image]
        over_or_away = self.running | self.suspended | self.succeeded | self.failed
        same_project = [other for other in self.running if self.jobs[other].project == job.project]
        return (
            image not in over_or_away
            and self.succeeded.issuperset(job.after)
            and not any(self.unsettled(image) & self.unsettled(other) for other in self.running)
            and (self.jobs_per_project is None or len(same_project) < self.jobs_per_project)
        )

    def gain(self, image: int) -> int:
        return sum(
            self.sizes[blob] * (sum(blob in job.blobs for job in self.jobs) - 1)
            for blob in self.unsettled(image)
        )

    def best(self) -> int | None:
        able = [image for image in range(len(self.jobs)) if self.can_start(image)]
        return min(able, key=lambda image: (-self.gain(image), image), default=None)

    def fail(self, image: int) -> list[int]:
        self.failed.add(image)
        lost = []
        for later, job in enumerate(self.jobs):
            if later not in self.failed and not self.failed.isdisjoint(job.after):
                self.failed.add(later)
                lost.append(later)
        return lost

    def check(self) -> None:
        """No two running images send one blob; no project has too many."""
        sending = [blob for image in self.running for blob in self.unsettled(image)]
        assert len(sending) == len(set(sending))
        if self.jobs_per_project is not None:
            projects = [self.jobs[image].project for image in self.running]
            assert max(map(projects.count, projects), default=0) <= self.jobs_per_project


@st.composite
def graphs(draw: st.DrawFn) -> tuple[list[Job], list[int]]:
    """Up to 12 images over up to 8 blobs and 3 projects, some of them nested."""
    sizes = draw(st.lists(st.integers(0, 5), min_size=1, max_size=8))
    blobs = st.sets(st.integers(0, len(sizes) - 1), max_size=5).map(sorted)
    count = draw(st.integers(0, 12))
    nested = draw(st.booleans())
    jobs = [
        Job(
            blobs=draw(blobs),
            project=draw(st.integers(0, 2)),
            after=sorted(draw(st.sets(st.integers(0, image - 1), max_size=2)))
            if nested and image
            else (),
        )
        for image in range(count)
    ]
    return jobs, sizes


LIMITS = st.none() | st.integers(1, 2)
WORKERS = st.integers(1, 12)


@settings(max_examples=2000, deadline=None)
@given(graphs(), LIMITS, WORKERS, st.data())
def test_whatever_happens_the_next_image_is_the_best_that_may_run(
    graph: tuple[list[Job], list[int]], limit: int | None, workers: int, data: st.DataObject
) -> None:
    jobs, sizes = graph
    schedule, model = Schedule(jobs, sizes, jobs_per_project=limit), Model(jobs, sizes, limit)
    tries = [0] * len(jobs)
    lost: list[int] = []
    while not schedule.done:
        # A worker may be late: others report before it asks.
        asking = data.draw(st.integers(0, workers), label="asking")
        while len(model.running) < min(asking, workers):
            image = schedule.next()
            assert image == model.best()
            if image is None:
                break
            tries[image] += 1
            model.running.add(image)
            model.check()
        awake = sorted(model.running | model.suspended)
        if not awake:
            continue
        image = data.draw(st.sampled_from(awake), label="image")
        happens = data.draw(st.sampled_from(["succeed", "suspend", "fail", "settle"]))
        if image in model.suspended and happens != "fail":
            schedule.resume(image)
            model.suspended.remove(image)
        elif happens == "settle":
            for blob in jobs[image].blobs[:1]:
                schedule.settle(blob)
                model.settled.add(blob)
        elif happens == "suspend" and tries[image] < 3:
            schedule.suspend(image)
            model.running.remove(image)
            model.suspended.add(image)
        elif happens == "fail":
            model.running.discard(image)
            model.suspended.discard(image)
            now_lost = schedule.fail(image)
            assert sorted(now_lost) == model.fail(image)
            lost += now_lost
        else:
            schedule.succeed(image)
            model.running.remove(image)
            model.succeeded.add(image)
            model.settled.update(jobs[image].blobs)
    assert schedule.next() is None
    assert model.succeeded | model.failed == set(range(len(jobs)))
    assert len(lost) == len(set(lost))
    assert [image for image in lost if tries[image]] == []
    assert [image for image in range(len(jobs)) if not tries[image]] == sorted(lost)


@settings(max_examples=500, deadline=None)
@given(graphs(), LIMITS, WORKERS, st.randoms(use_true_random=False))
def test_without_failures_every_image_runs_once_and_every_blob_is_sent_once(
    graph: tuple[list[Job], list[int]], limit: int | None, workers: int, random: Random
) -> None:
    jobs, sizes = graph
    schedule = Schedule(jobs, sizes, jobs_per_project=limit)
    order: list[int] = []
    sent: list[int] = []
    arrived: set[int] = set()
    running: list[int] = []
    while not schedule.done:
        while len(running) < workers and (image := schedule.next()) is not None:
            order.append(image)
            sent += set(jobs[image].blobs) - arrived
            running.append(image)
        assert running, "images are left, yet nothing runs"
        image = running.pop(random.randrange(len(running)))
        arrived.update(jobs[image].blobs)
        schedule.succeed(image)
    assert sorted(order) == list(range(len(jobs)))
    assert sorted(sent) == sorted({blob for job in jobs for blob in job.blobs})


# Scale


def large_registry(images: int) -> tuple[list[Job], list[int]]:
    """12 blobs an image: 5 of an operating system, 3 of a runtime, 2 of an application, 2 own.

    Of 100,000 images, 5,000 share an operating system, 250 a runtime, 10 an application.
    """
    sizes: list[int] = []
    levels: list[list[list[int]]] = []
    random = Random(0)
    for sharing, blobs in ((5000, 5), (250, 3), (10, 2), (1, 2)):
        groups = []
        for _ in range(0, images, sharing):
            groups.append(list(range(len(sizes), len(sizes) + blobs)))
            sizes += [random.randrange(1_000, 100_000_000) for _ in range(blobs)]
        levels.append([groups[image * len(groups) // images] for image in range(images)])
    jobs = [
        Job(blobs=[blob for part in parts for blob in part], project=image % 7)
        for image, parts in enumerate(zip(*levels, strict=True))
    ]
    return jobs, sizes


@pytest.mark.parametrize("limit", [None, 3])
@pytest.mark.parametrize("end", [Schedule.succeed, Schedule.fail], ids=["arrive", "fail"])
def test_the_work_is_linear_in_the_references_whether_all_arrive_or_all_fail(
    limit: int | None, end: Callable[[Schedule, int], object]
) -> None:
    jobs, sizes = large_registry(100_000)
    schedule = Schedule(jobs, sizes, jobs_per_project=limit)
    bound = 4 * sum(len(job.blobs) for job in jobs)
    running: list[int] = []
    runs = 0
    while not schedule.done:
        while len(running) < 16 and (image := schedule.next()) is not None:
            running.append(image)
            runs += 1
        end(schedule, running.pop(0))
        assert schedule.work <= bound
    assert runs == len(jobs)


def test_images_of_one_repository_stay_together_once_nothing_else_decides() -> None:
    jobs, sizes = large_registry(1000)
    schedule = Schedule(jobs, sizes)
    for blob in range(len(sizes)):
        schedule.settle(blob)
    order = started(schedule)
    assert all(earlier < later for earlier, later in pairwise(order))
