"""The kinds of outputs, and what is found of one: counted decisions or a level, and what of it was promised."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from onnxq.measure.kinds.layout import Layout
from onnxq.numerics import Share, Strata


class Kind(Enum):
    """What an output is for; the value is its name for users."""

    CLASSES = "classes"
    LABELS = "labels"
    PIXELS = "pixels"
    TOKENS = "tokens"
    CTC = "ctc"
    NEXT_TOKEN = "next-token"
    BOXES = "boxes"
    DETECTIONS = "detections"
    PICKED = "picked"
    EMBEDDING = "embedding"
    MAP = "map"
    REGRESSION = "regression"
    IMAGE = "image"
    AUDIO = "audio"
    IDS = "ids"
    FEATURES = "features"


class About(NamedTuple):
    """Of one kind, in words: what it is, what is measured, and what has to be kept."""

    what: str
    measured: str
    promise: str


KINDS: dict[Kind, About] = {
    Kind.CLASSES: About(
        "scores of classes, one decision a sample",
        "share of samples with the same largest score",
        "where float is sure, and of all",
    ),
    Kind.LABELS: About(
        "independent scores, each compared with a threshold",
        "share of scores above the threshold that stay there, of those above it in either model",
        "where float is sure, and of all",
    ),
    Kind.PIXELS: About(
        "a class or a mask for each pixel",
        "intersection over union; share of pixels with the same class, of masks of those set in either model",
        "where float is sure; of all, five near ties for one decision",
    ),
    Kind.TOKENS: About(
        "scores of classes for each row of a sequence",
        "share of rows with the same largest score",
        "all rows, and those where float is sure",
    ),
    Kind.CTC: About(
        "scores of characters and a blank, read as text",
        "share of characters kept (edit distance), share of texts kept",
        "characters; ten texts for one decision",
    ),
    Kind.NEXT_TOKEN: About(
        "scores of the next token of a vocabulary",
        "Kullback-Leibler divergence, share of rows with the same first token",
        "first tokens where float is sure; exp(-divergence)",
    ),
    Kind.BOXES: About(
        "boxes and scores before any selection, or scores beside boxes in another output",
        "share of what is detected at thresholds from 0.2 to 0.6 that has a counterpart, the worst of them",
        "where float is sure; of all, five near ties for one decision",
    ),
    Kind.DETECTIONS: About(
        "what NonMaxSuppression left",
        "share of detections with a counterpart",
        "ten detections for one decision",
    ),
    Kind.PICKED: About(
        "rows that were picked by their values",
        "share of rows with a counterpart",
        "ten rows for one decision",
    ),
    Kind.EMBEDDING: About(
        "vectors that are compared with each other",
        "cosine to the float model, and whether the nearest other sample stays the same",
        "the cosine that 95 % of the samples reach; neighbours where float is sure",
    ),
    Kind.MAP: About(
        "a matrix of weights, whose largest entries are read",
        "share of rows, columns, and both within blocks, with the largest entry in the same place",
        "where float is sure, and of all",
    ),
    Kind.REGRESSION: About(
        "numbers that are read as they are",
        "error relative to the spread over samples (R2), the worst column",
        "R2",
    ),
    Kind.IMAGE: About(
        "an image",
        "PSNR, and the share of blocks without a pixel that is off by a tenth of the range",
        "blocks; energy of the error relative to that of the image about its mean",
    ),
    Kind.AUDIO: About(
        "a sound",
        "SNR, and the share of frames with little noise",
        "frames; energy of the noise relative to the sound",
    ),
    Kind.IDS: About("whole numbers, truth values or texts", "share of equal ones", "equal ones"),
    Kind.FEATURES: About(
        "numbers whose use is not known",
        "energy of the noise",
        "energy of the noise relative to the output",
    ),
}


def kind_table() -> str:
    """Every kind with what it is, its measure and its promise, as a Markdown table."""
    rows = [f"| `{kind.value}` | {about.what} | {about.measured} | {about.promise} |" for kind, about in KINDS.items()]
    return "\n".join(["| kind | is | measured by | promised |", "|---|---|---|---|", *rows])


@dataclass(frozen=True)
class KindGuess:
    """What an output is taken for, and why. Where several kinds fit, all are measured and the strictest counts."""

    kinds: tuple[Kind, ...]
    reason: str
    layout: Layout = field(default_factory=Layout)

    @property
    def name(self) -> str:
        """The kinds in words."""
        return " or ".join(kind.value for kind in self.kinds)


@dataclass(frozen=True)
class Promise:
    """Something that is kept or not: a counted ``share``, or a ``level`` of which 1 is perfect.

    ``times``: how many may change for each decision that may. ``spare``: how many that changed are no evidence at all.
    ``sure``: whether only decisions are counted of which the float model is sure; ``strata``: these and the others,
    where all are counted and it is known.
    """

    what: str
    share: Share | None = None
    times: int = 1
    level: float | None = None
    sure: bool = False
    strata: Strata | None = None
    spare: int = 0

    @property
    def lost(self) -> float:
        """What is lost of it, as a share of decisions."""
        kept = self.level if self.share is None else self.share.value
        return (1.0 - (1.0 if kept is None else kept)) / self.times


class Where(NamedTuple):
    """A sample: the feed it is in, and its row there; None where the feed is one sample."""

    feed: int
    row: int | None = None


@dataclass(frozen=True)
class Measured:
    """What was found of one output, judged as ``kind``.

    | field        | meaning                                                                            |
    |--------------|------------------------------------------------------------------------------------|
    | `what`       | the measure in words                                                               |
    | `value`      | the measure, in ``unit``                                                           |
    | `rule`       | the name of the rule by which decisions are counted; empty where none are          |
    | `share`      | of all decisions, those that stay                                                  |
    | `sure`       | the same of those of which the float model is sure                                 |
    | `worst`      | the figure of the worst sample, and in words what it is                            |
    | `promises`   | all that has to be kept                                                            |
    | `detail`     | more of it, in words                                                               |
    | `level_db`   | SQNR in dB of the part that decides, where the output has parts                    |
    """

    kind: Kind
    what: str = ""
    value: float | None = None
    unit: str = ""
    rule: str = ""
    share: Share | None = None
    sure: Share | None = None
    worst: float | None = None
    worst_what: str = ""
    worst_at: Where | None = None
    promises: tuple[Promise, ...] = ()
    detail: str = ""
    level_db: float | None = None

    @property
    def lost(self) -> float:
        """The most that is lost of any promise."""
        return max((p.lost for p in self.promises), default=0.0)
