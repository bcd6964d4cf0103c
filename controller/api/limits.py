"""How often a token may call: a bucket of requests each, filled again at an even rate. In memory, per controller."""

import math

from common.clock import Clock
from common.errors import RateLimited

BUCKETS_KEPT = 10_000
"""Callers whose buckets are remembered; full ones are forgotten first, since they say nothing."""


class Limits:
    """The buckets, one a caller."""

    def __init__(self, *, rate_per_s: float, burst: int, clock: Clock) -> None:
        self._rate_per_s = rate_per_s
        self._burst = float(burst)
        self._clock = clock
        self._buckets: dict[str, tuple[float, float]] = {}

    def spend(self, caller: str) -> None:
        """Count one request. Raises RateLimited, with when to try again, where the bucket is empty."""
        if not self._rate_per_s:
            return
        now = self._clock()
        left = self._left(caller, now)
        if left < 1:
            wait_s = math.ceil((1 - left) / self._rate_per_s)
            raise RateLimited(
                f"{caller} sends more than {self._rate_per_s:g} requests a second, with bursts of {self._burst:g}",
                fix=f"try again in {wait_s} s, and send less often; an operator sets api.rate_per_s and api.burst",
                retry_after_s=wait_s,
            )
        self._buckets[caller] = (left - 1, now)
        if len(self._buckets) > BUCKETS_KEPT:
            self._forget_full(now)

    def _left(self, caller: str, now: float) -> float:
        left, at = self._buckets.get(caller, (self._burst, now))
        return min(self._burst, left + max(0.0, now - at) * self._rate_per_s)

    def _forget_full(self, now: float) -> None:
        """Forget who has been quiet for long enough; else, at twice as many, everybody."""
        self._buckets = {
            caller: bucket for caller, bucket in self._buckets.items() if self._left(caller, now) < self._burst
        }
        if len(self._buckets) > 2 * BUCKETS_KEPT:
            self._buckets.clear()
