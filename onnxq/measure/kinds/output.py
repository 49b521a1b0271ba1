"""One output of a float model as it is looked at to find out what it is for: names, shapes, ranges."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from onnxq.kernels.meaning import Head, Meaning
from onnxq.measure.kinds.kind import Kind, KindGuess
from onnxq.measure.kinds.layout import Layout
from onnxq.measure.kinds.seen import Array, Seen, joined
from onnxq.measure.kinds.sure import first_two, is_sure

# Parts of names that say what an output is for; whole words, or beginnings of them where there is a dot.
WORDS: Mapping[str, str] = {
    "state": "present past cache state states hn cn mems kv",
    "embedding": "embed. emb pool. descriptor. vector. fingerprint dvector xvector speaker",
    "features": "hidden feature. feat feats latent. encoder memory backbone mel mels spec spectrogram. mfcc",
    "classes": "logit. score. prob. class. cls softmax categor. intent label. top",
    "boxes": "box. bbox. loc locs rect. proposal.",
    "map": "attn attention. align. affinit. similarit. correlation. match. adjacenc. contact. arc arcs cost. weights",
    "regression": (
        "landmark. coord. point. keypoint. angle. pose age ages value. offset. regress. price. yaw roll pitch depth "
        "duration. forecast. quality distance. flow"
    ),
    "image": "image. img rgb sr restored denois. colou. color. pixel. rgba picture",
    "mask": "mask. seg segm. saliency matte alpha foreground",
    "audio": "audio. wav. waveform. sound. pcm vocal. drum. bass enhanced speech noise denoised",
    "ctc": "ctc",
    "heat": "heat heatmap. hm paf pafs kp",
}
SUM_TOLERANCE = 1e-3
# Of values in [0, 1], those near either end: masks have nearly all of them there.
ENDS, AT_ENDS = 0.1, 0.9
# The first of a row leads the second by this share of its lead over the mean where scores of classes are trained to
# stand out; of numbers drawn alike it is about 0.13 of 256, and less of more.
STANDS_OUT, SURELY_STANDS_OUT = 0.2, 0.3


@dataclass(frozen=True)
class Output:
    """The output ``name`` of what was ``seen``.

    ``head``: what stands behind it. ``others``: by output, the shape of a sample.
    """

    name: str
    seen: Seen
    head: Head = field(default_factory=Head)
    others: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @cached_property
    def arrays(self) -> list[Array]:
        """Those that hold anything and have the rank of the first."""
        found = [a for a in self.seen.outputs[self.name] if a.size]
        return [a for a in found if a.ndim == found[0].ndim]

    @cached_property
    def batch(self) -> int | None:
        """The axis that counts samples."""
        return self.seen.batch_axis(self.name)

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """That of a sample in the first feed."""
        return sample_shape(self.arrays[0], self.batch) if self.arrays else ()

    @cached_property
    def varies(self) -> tuple[bool, ...]:
        """Of each axis of a sample, whether its length varies."""
        found = self.seen.varies(self.name)
        return found if self.batch is None or not found else (*found[: self.batch], *found[self.batch + 1 :])

    def says(self, *subjects: str) -> str:
        """The first word in the name that speaks of one of ``subjects``; empty where there is none."""
        parts = re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", self.name).lower())
        for subject in subjects:
            for word in WORDS[subject].split():
                stem = word.rstrip(".")
                for part in parts:
                    if part == stem or (word.endswith(".") and part.startswith(stem)):
                        return str(part)
        return ""

    def layout(self, channels: int = -1) -> Layout:
        """How it is read with classes on the axis ``channels`` of a sample."""
        layout = Layout(self.batch, channels)
        rows = self.rows(channels)
        bounded = bool(len(rows)) and rows.min() >= -1e-6 and rows.max() <= 1.0 + 1e-6
        whole = bounded and rows.shape[1] > 1 and bool((np.abs(rows.sum(axis=1) - 1.0) < SUM_TOLERANCE).all())
        return Layout(layout.batch, channels, distribution=bool(whole), bounded=bool(bounded))

    def rows(self, channels: int = -1) -> Array:
        """``[rows, channels]`` of what was seen, finite rows only."""
        found = joined([Layout(self.batch, channels).samples(a) for a in self.arrays])
        return found[np.isfinite(found).all(axis=1)]

    def guess(self, *kinds: Kind, reason: str, layout: Layout | None = None) -> KindGuess:
        """A guess for this output."""
        return KindGuess(kinds, reason, layout or self.layout())

    # -- what ranges say -----------------------------------------------------------------------------------------------

    def log_distribution(self) -> bool:
        """Whether rows are logarithms of probabilities."""
        rows = self.rows().astype(np.float64)
        if self.head.meaning is Meaning.LOG_DISTRIBUTION:
            return True
        if not len(rows) or rows.shape[1] < 2 or rows.max() > 1e-6:
            return False
        return bool((np.abs(np.exp(rows).sum(axis=1) - 1.0) < SUM_TOLERANCE).all())

    def unit(self) -> bool:
        """Whether rows have length 1."""
        rows = self.rows().astype(np.float64)
        lengths = np.sqrt(np.square(rows).sum(axis=1))
        return bool(len(rows)) and rows.shape[1] > 1 and bool((np.abs(lengths - 1.0) < SUM_TOLERANCE).all())

    def stands_out(self) -> float:
        """By what share of its lead over the mean of a row the largest leads the second, in the middle of all rows."""
        rows = self.rows()
        if not len(rows) or rows.shape[1] < 3:
            return 1.0
        _, first, second = first_two(rows)
        lead = first - rows.mean(axis=1)
        return float(np.median((first - second) / np.maximum(lead, 1e-30)))

    def sure(self) -> float:
        """The share of rows whose largest is a sure choice, read as logits."""
        rows = self.rows()
        if not len(rows) or rows.shape[1] < 2:
            return 1.0
        return float(is_sure(*first_two(rows)[1:], probabilities=False).mean())

    def always_the_same(self) -> bool:
        """Whether the largest of nearly all of 8 rows or more is in the same column."""
        rows = self.rows()
        if len(rows) < 8:
            return False
        counts = np.bincount(rows.argmax(axis=1))
        return bool(counts.max() >= 0.95 * len(rows))

    def at_ends(self) -> bool:
        """Whether nearly all values, in [0, 1], are near 0 or 1."""
        rows = self.rows()
        return bool(len(rows)) and float(((rows < ENDS) | (rows > 1.0 - ENDS)).mean()) >= AT_ENDS

    def vague_vector(self) -> bool:
        """Whether it is as wide as vectors of features are, and rows do not stand out as scores do."""
        width = self.rows().shape[1]
        return width >= 64 and width % 16 == 0 and self.stands_out() < SURELY_STANDS_OUT


def sample_shape(array: Array, batch: int | None) -> tuple[int, ...]:
    """The shape of one sample."""
    return array.shape if batch is None else (*array.shape[:batch], *array.shape[batch + 1 :])


def sizes(shape: Sequence[int]) -> str:
    """A shape in words."""
    return "x".join(map(str, shape))
