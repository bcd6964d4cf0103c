"""Points of any resolution gathered into the buckets that were asked for: pure."""

from typing import Literal

import numpy as np

from controller.metrics.codec import Floats

Aggregate = Literal["avg", "max", "last"]
Span = tuple[int, int]
"""From one epoch second until before another."""


class Buckets:
    """So many buckets of one length, for some figures of one thing."""

    def __init__(self, start: int, step: int, count: int, figures: int) -> None:
        self.start, self.step, self.count = start, step, count
        self._sums = np.zeros((figures, count))
        self._weights = np.zeros((figures, count))
        self._peaks = np.full((figures, count), -1.0)
        self._last = np.full((figures, count), np.nan)
        self._last_at = np.full((figures, count), -1.0)

    @property
    def end(self) -> int:
        """Return the second behind the last bucket."""
        return self.start + self.step * self.count

    def add(self, points: tuple[int, int], means: Floats, peaks: Floats, span: Span) -> None:
        """Take in what lies within a span of (figures, points): the first at so many epoch seconds, so many apart.

        A point that is longer than a bucket fills all that it reaches.
        """
        start, step = points
        share = -(-step // self.step)
        if share > 1:
            means, peaks = np.repeat(means, share, axis=1), np.repeat(peaks, share, axis=1)
        length = step / share
        times = start + length * np.arange(means.shape[1])
        places = ((times - self.start) // self.step).astype(np.intp)
        there = (times >= max(span[0], self.start)) & (times < min(span[1], self.end))
        if not there.any():
            return
        times, places, means, peaks = times[there], places[there], means[:, there], peaks[:, there]
        rows, known = np.nonzero(~np.isnan(means))
        where = (rows, places[known])
        np.add.at(self._sums, where, means[rows, known] * length)
        np.add.at(self._weights, where, length)
        np.maximum.at(self._peaks, where, peaks[rows, known])
        np.maximum.at(self._last_at, where, times[known])
        newest = times[known] >= self._last_at[where]
        self._last[rows[newest], places[known[newest]]] = means[rows[newest], known[newest]]

    def result(self, how: Aggregate) -> Floats:
        """Return (figures, buckets); NaN where nothing is known."""
        known = self._weights > 0
        match how:
            case "avg":
                return np.where(known, self._sums / np.where(known, self._weights, 1), np.nan)
            case "max":
                return np.where(known, self._peaks, np.nan)
            case "last":
                return self._last
