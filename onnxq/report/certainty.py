"""What is promised of a result and how sure that is, as sentences."""

from __future__ import annotations

import math

from onnxq.measure.certainty import Certainty
from onnxq.measure.metric import MetricComparison
from onnxq.numerics import rounded_down


def certainty_line(certainty: Certainty) -> str:
    """How sure a promise is: what was counted, of the data and of made samples, and what can be promised."""
    parts = [f"{certainty.output}: {certainty.what}: {certainty.real} (held out)"]
    made = certainty.made
    if made is not None:
        what = f"with {made.samples:,} samples made of {made.of:,} others"
        if made.strata is None:
            parts.append(f"{what} {certainty.counted}")
        else:
            weighed = "near ties weighed as in the data"
            parts.append(f"{what}, {weighed}, at least {rounded_down(certainty.lower)}")
    promised = f"{certainty.promised * 100:.6g} %"
    if certainty.kept:
        return f"{'; '.join(parts)}: the promise of {promised} is kept"
    if contradicts(certainty):
        return f"{'; '.join(parts)}: the promise of {promised} is not kept"
    able = rounded_down(certainty.lower)
    return f"{'; '.join(parts)}: {promised} cannot be proven with this data, {able} can be promised"


def contradicts(certainty: Certainty) -> bool:
    """Whether the interval lies below the promise."""
    return certainty.counted.upper < certainty.promised


def metric_line(metric: MetricComparison) -> str:
    """What the user's own measure says of both models, and whether as little was lost as may be."""
    against = f" against {metric.truth}" if metric.truth else ""
    interval = (
        f"95 % interval {metric.low:+.4g} to {metric.high:+.4g}"
        if math.isfinite(metric.low) and math.isfinite(metric.high)
        else "too few samples to say how sure"
    )
    return (
        f"{metric.name}, {metric.samples} samples{against}: {metric.before:.6g} before, {metric.after:.6g} after, "
        f"{metric.difference:+.4g} ({interval}); {_kept(metric)}"
    )


def _kept(metric: MetricComparison) -> str:
    may = f"it may lose {metric.max_drop:.4g}"
    if metric.proven:
        return f"{may}, and loses no more"
    if metric.good and math.isfinite(metric.low):
        return f"{may}, and so few samples cannot prove that: up to {-metric.low:.4g} may be lost"
    if metric.good:
        return may
    return f"{may}, and loses more" + (", beyond chance" if metric.hopeless else "")
