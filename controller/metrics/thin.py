"""Fewer and coarser points from many: pure."""

import numpy as np

from controller.metrics.codec import Codes, Floats, expand, quantise


def thin(means: Codes, peaks: Codes, into: int) -> tuple[Codes, Codes]:
    """Return rows with one point for each `into` points: the mean of the means, the highest of the peaks.

    What is not known is left out; a point of which nothing is known stays unknown.
    """
    rows, points = means.shape
    shape = (rows, points // into, into)
    mean, _ = means_of(expand(means).reshape(shape))
    peak = expand(peaks).reshape(shape)
    known = ~np.isnan(peak)
    highest = np.where(known.any(axis=2), np.max(peak, axis=2, where=known, initial=0.0), np.nan)
    return quantise(mean), quantise(highest)


def means_of(values: Floats) -> tuple[Floats, Floats]:
    """Return the means along the last axis over what is known, and of how many figures each is the mean."""
    known = ~np.isnan(values)
    counts = known.sum(axis=-1).astype(np.float64)
    sums = np.sum(values, axis=-1, where=known)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan), counts
