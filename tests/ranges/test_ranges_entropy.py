"""The entropy method against a plain reading of its source: every number of bins kept, the first bin as the second."""

from __future__ import annotations

import numpy as np
import pytest

from onnxq.ranges import entropy
from onnxq.ranges.samples import F64, Samples


def divergence(counts: F64, kept: int, levels: int) -> float:
    """KL(P || Q) by loops over groups and bins, infinite where Q is 0 and P is not."""
    p = counts[:kept].copy()
    p[-1] += counts[kept:].sum()
    q = np.zeros(kept)
    for group in range(levels):
        part = slice(group * kept // levels, (group + 1) * kept // levels)
        filled = counts[part] > 0
        q[part] = filled * counts[part].sum() / max(1, filled.sum())
    p, q = p / p.sum(), q / q.sum()
    if ((p > 0) & (q == 0)).any():
        return np.inf
    return float(np.sum(p[p > 0] * np.log(p[p > 0] / q[p > 0])))


def samples(counts: F64) -> Samples:
    """One point in the middle of each bin that holds something, of bins of width 1; the last of them reaches BINS."""
    bins = np.flatnonzero(counts)
    ends = np.zeros(1), np.full(1, float(entropy.BINS))
    return Samples(bins[None] + 0.5, counts[bins][None], *ends)


def peaked(zeros: float, *, width: float = 60.0) -> F64:
    """Counts that fall from the first bin on, a few far away, and ``zeros`` more in the first bin."""
    at = np.arange(entropy.BINS)
    counts = np.floor(4000 * np.exp(-at / width)) + (at % 300 == 299)
    counts[0] += zeros
    counts[-1] = 1
    return counts


@pytest.mark.parametrize("levels", [8, 16, 128])
@pytest.mark.parametrize("width", [6.0, 15.0, 60.0])
@pytest.mark.parametrize("zeros", [0.0, 1e7])
def test_the_threshold_is_the_best_of_all_with_the_second_bins_count_in_the_first(
    levels: int, width: float, zeros: float
) -> None:
    counts = peaked(zeros, width=width)
    found = entropy.thresholds(samples(counts), levels)[0]
    counts[0] = counts[1]
    every = np.asarray([divergence(counts, kept, levels) for kept in range(levels, entropy.BINS + 1)])
    kept = round(found)
    assert found == pytest.approx(kept)
    assert every[kept - levels] == pytest.approx(every.min(), abs=1e-9)


def test_the_first_bin_decides_only_as_its_neighbour_does() -> None:
    """However many zeros a ReLU leaves; and a first bin that counts for nothing would give another threshold."""
    thresholds = {entropy.thresholds(samples(peaked(zeros, width=15.0)), 8)[0] for zeros in (0.0, 1e3, 1e9)}
    counts = peaked(0.0, width=15.0)
    counts[0] = 0.0
    without = 8 + int(np.argmin(entropy.divergences(counts, 8)))
    assert len(thresholds) == 1
    assert thresholds != {without}


def test_zeros_alone_beside_the_largest_are_counted() -> None:
    """Nothing but zeros and one end: no neighbour whose count could be taken, and the end is kept."""
    counts = np.zeros(entropy.BINS)
    counts[[0, -1]] = 1000.0, 1.0
    assert entropy.thresholds(samples(counts), 16)[0] == entropy.BINS
