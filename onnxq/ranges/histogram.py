"""What every range method reads of an activation tensor: a histogram on a dyadic grid and the exact ends.

The grid is fixed by one integer: bin ``i`` covers ``[i, i + 1) * 2**exponent``. Widening a histogram merges whole bins
(the exponent grows), so that the result of observing data does not depend on how it was cut into batches.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, eq=False)
class Histogram:
    """Counts of a tensor's values, and its exact ends.

    | field      | meaning                                                                        |
    |------------|--------------------------------------------------------------------------------|
    | `counts`   | ``[n] int64``, sampled elements in each bin                                    |
    | `first`    | index of the first bin: bin ``k`` covers ``[first + k, first + k + 1) * width`` |
    | `exponent` | ``width = 2**exponent``                                                        |
    | `low`, `high` | exact smallest and largest element seen (all elements, not only the sampled) |
    | `ends`     | ``[k, 2] float32``, smallest and largest element of each array, in any order    |

    ``counts`` may come from a deterministic sample of the elements; ``low`` and ``high`` never do.
    """

    counts: npt.NDArray[np.int64]
    first: int
    exponent: int
    low: float
    high: float
    ends: npt.NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 2), np.float32))

    @property
    def width(self) -> float:
        """Width of a bin in the tensor's unit."""
        return float(2.0**self.exponent)

    @property
    def total(self) -> int:
        """Number of elements counted."""
        return int(self.counts.sum())
