"""How hard a push works."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from exporter.retry import Retry

REQUESTS_PER_JOB = 4
"""HEADs and mounts at a time, for each of `jobs`: they wait for a round trip and nothing else."""

MAX_REQUESTS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How hard a push works.

    Attributes:
        jobs: How many images are sent at a time; one more is made ready.
        jobs_per_project: How many of all these in one project; no limit of its own if None.
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
