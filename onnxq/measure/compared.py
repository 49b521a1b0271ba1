"""What was found of one output of two models."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from onnxq.kernels.lengths import Length
from onnxq.measure.kinds import Kind, Promise
from onnxq.numerics import Share
from onnxq.runtime.plain import plain


@dataclass(frozen=True)
class OutputComparison:
    """One output; figures are None where there are none.

    | field                      | meaning                                                                            |
    |----------------------------|------------------------------------------------------------------------------------|
    | `elements`                 | compared in all                                                                    |
    | `sqnr_db`                  | SQNR in dB                                                                         |
    | `centred_sqnr_db`          | the same with the row mean removed                                                 |
    | `max_abs_error`            | in the output's unit                                                               |
    | `problem`                  | one line, or None: NaN in either model, infinity in one of them, other shapes      |
    | `kind`, `kind_reason`      | what it is judged as (``kinds``), and why                                          |
    | `what`, `measure`, `unit`  | the measure of that kind in words, its value, the unit of that                     |
    | `agreement_rule`           | the rule by which decisions are counted; empty where none are                      |
    | `share`, `sure`            | decisions that stay: of all, and of those of which the float model is sure         |
    | `worst`, `worst_what`      | figure of the worst sample, and what it is                                         |
    | `worst_place`              | that sample in the user's words                                                    |
    | `detail`                   | more of the measure, in words                                                      |
    | `promises`                 | what has to be kept, for the strictest of the kinds that fit                       |
    | `parts_db`                 | SQNR of the part that decides, where the output has parts                          |
    | `length`                   | how its length follows from values; None where it does not                         |
    | `samples`                  | compared; `other_length`, `other_alignment`: so many of them differ in that        |
    """

    name: str
    elements: int
    sqnr_db: float | None
    centred_sqnr_db: float | None
    max_abs_error: float | None
    problem: str | None = None
    kind: str = Kind.FEATURES.value
    kind_reason: str = ""
    what: str = ""
    measure: float | None = None
    unit: str = ""
    agreement_rule: str = ""
    share: Share | None = None
    sure: Share | None = None
    worst: float | None = None
    worst_what: str = ""
    worst_place: str = ""
    detail: str = ""
    promises: tuple[Promise, ...] = ()
    parts_db: float | None = None
    length: Length | None = None
    samples: int = 0
    other_length: int = 0
    other_alignment: int = 0

    @property
    def agreement(self) -> float | None:
        """The share of decisions that stay; None where there is none."""
        return None if self.share is None or not self.share.rows else self.share.value

    @property
    def rows(self) -> int:
        """How many decisions there are."""
        return 0 if self.share is None else self.share.rows

    @property
    def same_length(self) -> float:
        """The share of samples that have the same length in both models, and the same alignment."""
        return 1.0 - (self.other_length + self.other_alignment) / max(self.samples, 1)

    @property
    def lengths(self) -> Share:
        """The samples that have the same length in both models, and the same alignment."""
        return Share(self.samples - self.other_length - self.other_alignment, self.samples, self.samples)

    @property
    def difference(self) -> str | None:
        """One line about samples of another length; None where there are none."""
        said = [(self.other_length, "another length"), (self.other_alignment, "another alignment")]
        found = [f"{count} of {self.samples} samples have {what}" for count, what in said if count]
        return f"{self.name}: {', '.join(found)}" if found else None

    @property
    def level_db(self) -> float | None:
        """The SQNR that counts, in dB: of the part that decides, with the row mean removed where that is defined."""
        whole = self.sqnr_db if self.centred_sqnr_db is None else self.centred_sqnr_db
        return whole if self.parts_db is None else self.parts_db

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types, shares with their count and lower end."""
        shares = {
            name: None if s is None else share_dict(s) for name, s in (("share", self.share), ("sure", self.sure))
        }
        promises = [
            {"what": p.what, "times": p.times, "level": plain(p.level), "share": p.share and share_dict(p.share)}
            for p in self.promises
        ]
        found: dict[str, Any] = plain(replace(self, share=None, sure=None, promises=()))
        return {**found, **shares, "promises": promises, "agreement": plain(self.agreement), "rows": self.rows}


def share_dict(share: Share) -> dict[str, Any]:
    """``share`` as plain JSON types."""
    return {
        "same": share.same,
        "rows": share.rows,
        "samples": share.samples,
        "value": plain(share.value),
        "lower": plain(share.lower),
    }
