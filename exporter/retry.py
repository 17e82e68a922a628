"""How what failed for a passing reason is tried again."""

import random
from dataclasses import dataclass

from exporter.errors import TemporaryDestinationError


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """How often, and how patiently, what failed for a temporary reason is tried again.

    Attributes:
        tries: Tries of one thing in all, the first included.
        first_seconds: Wait before the second try; it doubles each time, and is spread by half.
        most_seconds: Longest wait, except where the destination itself asks for more.
    """

    tries: int = 5
    first_seconds: float = 1.0
    most_seconds: float = 60.0

    def wait_seconds(self, failures: int, error: TemporaryDestinationError) -> float:
        """Return how long to wait after that many failures (1 or more)."""
        backoff = min(self.first_seconds * 2.0 ** (failures - 1), self.most_seconds)
        spread = backoff * random.uniform(0.5, 1.0)  # noqa: S311 - no secret
        return max(spread, error.retry_after_seconds or 0.0)
