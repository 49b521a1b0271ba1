"""A counted share and how sure it is: the lower end of its 95 % confidence interval.

The interval is that of Clopper and Pearson (The use of confidence or fiducial limits, Biometrika 26, 1934). What is
counted within one sample hangs together (pixels of an image, words of a sentence): the sample size is divided by the
design effect, as Korn and Graubard do (Confidence intervals for proportions with small expected number of positive
counts estimated from survey data, Survey Methodology 24, 1998).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

LEVEL = 0.95
_STEPS = 200  # of the continued fraction, which takes about sqrt(n) of them where it is used


@dataclass(frozen=True)
class Share:
    """``same`` of ``rows`` decisions, counted over ``samples``; shares of different data add up.

    ``missed_squares``, ``missed_times_rows``, ``rows_squares``: sums over samples, for the design effect.
    """

    same: int = 0
    rows: int = 0
    samples: int = 0
    missed_squares: float = 0.0
    missed_times_rows: float = 0.0
    rows_squares: float = 0.0

    @classmethod
    def of(cls, same: int, rows: int) -> Share:
        """That of one sample; of no sample where there is nothing to count."""
        if not rows:
            return cls()
        missed = float(rows - same)
        return cls(int(same), int(rows), 1, missed * missed, missed * rows, float(rows) * rows)

    def __add__(self, other: Share) -> Share:
        return Share(
            self.same + other.same,
            self.rows + other.rows,
            self.samples + other.samples,
            self.missed_squares + other.missed_squares,
            self.missed_times_rows + other.missed_times_rows,
            self.rows_squares + other.rows_squares,
        )

    @property
    def value(self) -> float:
        """The share itself; 1 of nothing."""
        return self.same / self.rows if self.rows else 1.0

    @property
    def design_effect(self) -> float:
        """The variance of the share over what it were if all decisions were independent; at least 1.

        Of what was never missed nothing can be said: then it is that of a single miss.
        """
        if self.samples < 2 or self.rows == self.samples:
            return 1.0
        missed = 1.0 - self.value
        independent = self.rows * missed * (1.0 - missed)
        if independent <= 0.0:
            return 1.0
        among = self.missed_squares - 2.0 * missed * self.missed_times_rows + missed * missed * self.rows_squares
        return max(1.0, among * self.samples / (self.samples - 1) / independent)

    @property
    def lower(self) -> float:
        """The lower end of the two-sided 95 % interval: what can be promised; 0 of nothing."""
        if not self.rows:
            return 0.0
        alike = lower_end(self.samples, self.samples)
        if self.same == self.rows:
            # As sure as with one decision missed, or as samples that are alike as a whole.
            return max(alike, lower_end(self.rows - 1, self.rows))
        size = max(self.rows / self.design_effect, 1.0)
        return lower_end(self.value * size, size)

    @property
    def upper(self) -> float:
        """The upper end: below it the data contradicts a promise; 1 of nothing."""
        if not self.rows:
            return 1.0
        size = max(self.rows / self.design_effect, 1.0)
        return 1.0 - lower_end((1.0 - self.value) * size, size)

    def __str__(self) -> str:
        return f"{self.same:,} of {self.rows:,}, at least {rounded_down(self.lower)}"


@dataclass(frozen=True)
class Strata:
    """Decisions in two parts: those of which a model is ``sure`` and ``near`` ties; ``sureness``: how many are sure.

    The parts may be of other samples than ``sureness``: such as hold more near ties.
    """

    sure: Share
    near: Share
    sureness: Share

    def __add__(self, other: Strata) -> Strata:
        return Strata(self.sure + other.sure, self.near + other.near, self.sureness + other.sureness)

    @property
    def value(self) -> float:
        """The share over both parts, weighed as ``sureness`` says."""
        weight = self.sureness.value
        return weight * self.sure.value + (1.0 - weight) * self.near.value

    @property
    def lower(self) -> float:
        """The lower end of its 95 % interval, from those of the parts.

        By the method of variance estimates recovery (Zou and Donner, Construction of confidence limits about effect
        measures, Statistics in Medicine 27, 2008). Of a part without samples nothing is known.
        """
        weight, sure, near = self.sureness, self.sure, self.near
        parts = (
            weight.value * (sure.value - sure.lower),
            (1.0 - weight.value) * (near.value - near.lower),
            # Fewer sure decisions mean more of the part with the lower share.
            max(0.0, sure.value - near.value) * (weight.value - weight.lower),
        )
        return max(0.0, self.value - math.sqrt(sum(part * part for part in parts)))


def rounded_down(share: float) -> str:
    """``share`` in percent with as many digits as say something, never more than it is."""
    digits = 0 if share < 0.95 else 1 if share < 0.995 else 2
    return f"{math.floor(share * 100 * 10**digits + 1e-9) / 10**digits:.{digits}f} %"


def lower_end(same: float, size: float) -> float:
    """The lower end of the Clopper-Pearson interval for ``same`` of ``size``, which need not be whole numbers."""
    if same <= 0.0:
        return 0.0
    low, high, tail = 0.0, min(1.0, same / size), (1.0 - LEVEL) / 2.0
    for _ in range(60):
        middle = (low + high) / 2.0
        if incomplete_beta(same, size - same + 1.0, middle) < tail:
            low = middle
        else:
            high = middle
    return low


def incomplete_beta(a: float, b: float, x: float) -> float:
    """The regularized incomplete beta function, by its continued fraction (DLMF 8.17.22)."""
    if x <= 0.0 or x >= 1.0:
        return 0.0 if x <= 0.0 else 1.0
    if x > (a + 1.0) / (a + b + 2.0):
        return 1.0 - incomplete_beta(b, a, 1.0 - x)
    front = math.exp(
        math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x) - math.log(a)
    )
    # Lentz's method: the value is the product of ``c * d``.
    c, d = 1.0, 1.0 / (1.0 - (a + b) * x / (a + 1.0))
    value = d
    for m in range(1, max(_STEPS, int(4 * math.sqrt(max(a, b))))):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        step = 1.0
        for term in (even, odd):
            d, c = 1.0 / (1.0 + term * d), 1.0 + term / c
            step = c * d
            value *= step
        if abs(step - 1.0) < 1e-14:
            break
    return front * value
