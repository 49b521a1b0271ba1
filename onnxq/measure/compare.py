"""The quantized model against the float one over the same data: noise, agreement, accuracy. Nothing is kept but sums.

Rules, all decided by type and shape alone:

| output                                   | SQNR | row mean removed too | agreement: share of ...                   |
|------------------------------------------|------|----------------------|-------------------------------------------|
| float, rank 2 or 3, last axis >= 2       | yes  | yes                  | rows with the same arg-max (first of ties) |
| the same of rank 3, independent scores   | yes  | yes                  | rows that decide, with the same decision  |
| float, rank >= 2, last axis 1            | yes  | no                   | values on the same side of a threshold    |
| other float (maps, vectors, scalars)     | yes  | no                   | none                                      |
| integer, bool, string                    | no   | no                   | equal elements                            |

The threshold of a single column is 0.5 if all values of the float model lie in [0, 1] (a probability), else 0 (a
logit). Independent scores are values in [0, 1] whose rows do not sum to 1, as detectors give for thousands of places: a
row decides for its largest entry if that is above 0.5, and counts if it decides in either model. A rank-3 output that
holds no classes on its last axis (boxes, features) gets an arg-max like any other: read it with that in mind.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxq.errors import DataError, ModelError
from onnxq.measure.accuracy import Accuracy, Scorer
from onnxq.measure.references import Answers
from onnxq.numerics import Noise, agreement, centred, noise
from onnxq.runtime.plain import plain
from onnxq.runtime.proto import Model, label
from onnxq.runtime.session import QUIET, open_session, run

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class OutputComparison:
    """One output; figures are None where the rules above give none.

    ``elements``: compared in all. ``sqnr_db``, ``centred_sqnr_db`` (row mean removed): dB. ``max_abs_error``: in the
    output's unit. ``agreement``: share in [0, 1] of the ``rows`` judged by ``agreement_rule``. ``problem``: one line,
    or None: NaN or infinity in either model (which one is named), or shapes that differ between the models (such
    feeds are left out).
    """

    name: str
    elements: int
    sqnr_db: float | None
    centred_sqnr_db: float | None
    max_abs_error: float | None
    agreement: float | None
    agreement_rule: str  # "arg-max", "arg-max above 0.5", "above 0.5", "above 0", "equal", "mixed" or ""
    rows: int
    rank: int  # dimensions
    probability: bool  # whether all floats of the float model lie in [0, 1], and where classes are, rows sum to 1
    problem: str | None

    @property
    def level_db(self) -> float | None:
        """The SQNR that counts, in dB: with the row mean removed where that is defined."""
        return self.sqnr_db if self.centred_sqnr_db is None else self.centred_sqnr_db


@dataclass(frozen=True)
class Comparison:
    """All outputs of two models over ``feeds`` runs of each; ``accuracy`` only where labels were given."""

    float_model: str
    quantized_model: str
    feeds: int
    outputs: tuple[OutputComparison, ...]
    accuracy: Accuracy | None = None

    @property
    def primary(self) -> OutputComparison:
        """The output that stands for the model: the first with an SQNR, else the first."""
        return next((o for o in self.outputs if o.sqnr_db is not None), self.outputs[0])

    @property
    def sqnr_db(self) -> float | None:
        """Model SQNR in dB: of the primary output, with the row mean removed where that is defined."""
        return self.primary.level_db

    @property
    def problems(self) -> tuple[str, ...]:
        """What is wrong, one line each; empty if all outputs are finite and of equal shapes."""
        return tuple(o.problem for o in self.outputs if o.problem)

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        return {**plain(self), "sqnr_db": plain(self.sqnr_db), "problems": list(self.problems)}


def compare(
    float_model: Model | Answers,
    quantized_model: Model,
    feeds: Iterable[Mapping[str, Array]],
    *,
    labels: npt.ArrayLike | None = None,
    label_output: str | None = None,
    threads: int | None = None,
) -> Comparison:
    """The ``Comparison`` of ``quantized_model`` with ``float_model`` over ``feeds``, one pass, constant memory.

    ``float_model``: or what is known of its answers already.

    ``labels: [N] int`` for ``[N, C]`` outputs or ``[N, T] int`` for ``[N, T, C]``, in the order of the feeds; negative
    labels are ignored. They are for ``label_output``, by default the first float output with at least 2 classes.

    Raises ``DataError`` for empty feeds or labels that do not fit, ``ModelError`` where output names differ.
    """
    # Idle threads of one session that spin would slow the other one down (see ``latency``).
    b = open_session(quantized_model, threads=threads, config=QUIET)
    if isinstance(float_model, Answers):
        name, names, answer = label(float_model.model), float_model.names, float_model.of
    else:
        a = open_session(float_model, threads=threads, config=QUIET)
        name, names, answer = label(float_model), [o.name for o in a.get_outputs()], partial(run, a)
    if missing := sorted(set(names) - {o.name for o in b.get_outputs()}):
        raise ModelError(
            f"{label(quantized_model)} has no output {missing[0]}, which {name} has; "
            "compare a model with its own quantized version"
        )
    sums = {name: _Sums(name) for name in names}
    scorer = None if labels is None else Scorer(labels, label_output)
    count = 0
    for feed in feeds:
        references, tests = answer(feed), run(b, feed, outputs=names)
        for output, reference, test in zip(names, references, tests, strict=True):
            sums[output].add(reference, test, feed=count)
        if scorer is not None:
            scorer.add(names, references, tests)
        count += 1
    if not count:
        raise DataError("there is no data to compare the models on: give at least one sample")
    accuracy = None if scorer is None else scorer.result()
    outputs = tuple(s.result() for s in sums.values())
    return Comparison(name, label(quantized_model), count, outputs, accuracy)


_DECIDES = 0.5  # the score from which on a row of independent scores is taken for its class
_SUM_TOLERANCE = 1e-3


@dataclass
class _Sums:
    """What is known of one output so far."""

    name: str
    raw: Noise | None = None
    centred: Noise | None = None
    max_abs: float | None = None
    elements: int = 0
    same: int = 0
    rows: int = 0
    rank: int = 0
    same_side: list[int] = field(default_factory=lambda: [0, 0])  # of 0.5, of 0
    probability: bool = True
    distribution: bool = True  # whether all rows of the float model sum to 1
    decided: list[int] = field(default_factory=lambda: [0, 0])  # rows that decide: alike, all
    rule: str = ""
    problem: str | None = None

    def add(self, reference: Array, test: Array, *, feed: int) -> None:
        if reference.shape != test.shape:
            shapes = f"{list(reference.shape)} in the float model but {list(test.shape)} in the quantized one"
            self._flag(f"output {self.name} has shape {shapes} for feed {feed}")
            return
        self.elements += reference.size
        self.rank = reference.ndim
        if reference.dtype.kind != "f":
            self._follow("equal")
            self.same += int(np.count_nonzero(reference == test))
            self.rows += reference.size
            return
        for which, array in (("float", reference), ("quantized", test)):
            if not np.isfinite(array).all():
                self._flag(f"output {self.name} of the {which} model holds NaN or infinity for feed {feed}")
        self._add_floats(reference, test)

    def _add_floats(self, reference: Array, test: Array) -> None:
        self.raw = (self.raw or Noise()) + noise(reference, test)
        self.probability &= bool(((reference >= 0) & (reference <= 1)).all())
        with np.errstate(invalid="ignore"):
            error = np.abs(reference.astype(np.float64) - test.astype(np.float64))
        worst = float(error.max(initial=0.0, where=~np.isnan(error)))
        self.max_abs = max(self.max_abs or 0.0, worst)
        last = reference.shape[-1] if reference.ndim >= 2 else 0
        if reference.ndim in (2, 3) and last >= 2:
            self._follow("arg-max")
            # A row with a non-finite entry has no mean; the raw noise already tells of it.
            good = np.isfinite(reference).all(axis=-1) & np.isfinite(test).all(axis=-1)
            self.centred = (self.centred or Noise()) + noise(centred(reference[good]), centred(test[good]))
            same, rows = agreement(reference, test)
            self.same, self.rows = self.same + same, self.rows + rows
            self.distribution &= bool((np.abs(reference.sum(axis=-1, dtype=np.float64) - 1.0) < _SUM_TOLERANCE).all())
            if self.probability and not self.distribution:
                self._decide(reference, test)
        elif last == 1:
            self._follow("threshold")
            for i, threshold in enumerate((0.5, 0.0)):
                self.same_side[i] += int(np.count_nonzero((reference > threshold) == (test > threshold)))
            self.rows += reference.size

    def _decide(self, reference: Array, test: Array) -> None:
        """Counts the rows whose largest entry is above 0.5 in either model, and those alike in that and in which."""
        above = [a.max(axis=-1) > _DECIDES for a in (reference, test)]
        alike = above[0] & above[1] & (reference.argmax(axis=-1) == test.argmax(axis=-1))
        self.decided[0] += int(np.count_nonzero(alike))
        self.decided[1] += int(np.count_nonzero(above[0] | above[1]))

    def _follow(self, rule: str) -> None:
        """Note the rule in use; an axis of dynamic length that asks for two of them gets no agreement at all."""
        self.rule = rule if self.rule in ("", rule) else "mixed"

    def _flag(self, problem: str) -> None:
        self.problem = self.problem or problem

    def result(self) -> OutputComparison:
        rule, same, rows = self.rule, self.same, self.rows
        probability = self.probability and (rule != "arg-max" or self.distribution)
        if rule == "arg-max" and self.rank == 3 and self.probability and not probability:
            rule, (same, rows) = "arg-max above 0.5", self.decided
        if rule == "threshold":
            rule, same = ("above 0.5", self.same_side[0]) if self.probability else ("above 0", self.same_side[1])
        return OutputComparison(
            self.name,
            self.elements,
            None if self.raw is None else self.raw.sqnr_db,
            None if self.centred is None else self.centred.sqnr_db,
            self.max_abs,
            same / rows if rows and rule != "mixed" else None,
            rule,
            rows,
            self.rank,
            probability,
            self.problem,
        )
