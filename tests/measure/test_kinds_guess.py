"""What outputs are taken for: a small output of each sort that models have, and some that look like others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from onnxq.errors import ConfigError
from onnxq.kernels.lengths import Length
from onnxq.kernels.meaning import Head, meaning
from onnxq.measure.kinds import KindGuess, Seen, guessed

Array = npt.NDArray[Any]
COUNT = 16


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def softmax(x: Array, axis: int = -1) -> Array:
    e = np.exp(x - x.max(axis=axis, keepdims=True))
    return np.asarray(e / e.sum(axis=axis, keepdims=True))


def sigmoid(x: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-x)))


def unit(x: Array) -> Array:
    return np.asarray(x / np.sqrt(np.square(x).sum(axis=-1, keepdims=True)))


IMAGE: dict[str, Array] = {"image": np.zeros((1, 3, 64, 64), np.float32)}
TEXT: dict[str, Array] = {"ids": np.zeros((1, 12), np.int64)}
SOUND: dict[str, Array] = {"x": np.zeros((1, 8000), np.float32)}


@dataclass
class Case:
    """An output called ``name`` that ``make`` makes of a seed; ``kinds``: what it is for."""

    kinds: str
    name: str
    make: Callable[[int], Array]
    inputs: dict[str, Array] = field(default_factory=lambda: IMAGE)
    op: str = ""
    tokens: frozenset[int] = frozenset()
    beside: dict[str, Callable[[int], Array]] = field(default_factory=dict)
    length: Length | None = None


def guess(case: Case) -> KindGuess:
    """What ``case`` is taken for."""
    seen = Seen()
    makers = {case.name: case.make, **case.beside}
    for seed in range(COUNT):
        answers = [make(seed) for make in makers.values()]
        seen.add(list(makers), [a.astype(np.float32) if a.dtype.kind == "f" else a for a in answers], case.inputs)
    heads = {case.name: Head(case.op, meaning(case.op), case.tokens)}
    lengths = {} if case.length is None else {case.name: case.length}
    return guessed(seen, heads=heads, lengths=lengths)[case.name]


def spiky(width: int, blank: int, frames: int = 60) -> Callable[[int], Array]:
    """Logits of characters a frame each, between blanks."""

    def make(seed: int) -> Array:
        g = rng(seed)
        path = np.full(frames, blank)
        path[3::5] = g.integers(1, width - 1, len(path[3::5]))
        x = g.normal(0, 1, (1, frames, width))
        x[0, np.arange(frames), path] += 9
        return x

    return make


def runs(width: int) -> Callable[[int], Array]:
    """Logits of labels that last: silence, then others for ten frames each."""

    def make(seed: int) -> Array:
        g = rng(seed)
        x = g.normal(0, 1, (1, 60, width))
        x[0, np.arange(60), np.repeat([0, *g.integers(1, width, 5)], 10)] += 9
        return x

    return make


def detector(
    classes: int, *, objectness: bool = False, swap: bool = False, size: float = 640.0
) -> Callable[[int], Array]:
    """Boxes as centre and size, then (objectness and) scores, most of them low: [1, P, 4 + C]."""

    def make(seed: int) -> Array:
        g = rng(seed)
        box = np.concatenate([g.uniform(0, size, (200, 2)), g.uniform(0.02 * size, 0.2 * size, (200, 2))], axis=1)
        low = sigmoid(g.normal(-6, 1, (200, classes)))
        places = g.choice(200, 12, replace=False)
        low[places, g.integers(0, classes, 12)] = g.uniform(0.5, 0.95, 12)
        if objectness:
            there = sigmoid(g.normal(-6, 1, (200, 1)))
            there[places] = g.uniform(0.5, 0.95, (12, 1))
            low = np.concatenate([there, softmax(g.normal(0, 4, (200, classes)))], axis=1)
        y = np.concatenate([box, low], axis=1)[None]
        return y.swapaxes(1, 2) if swap else y

    return make


def encoded(y: Array) -> Array:
    """Boxes as offsets from places that the output does not say, on both sides of 0."""
    y[..., :4] = rng(1).normal(0, 1, y[..., :4].shape)
    return y


def places(width: int, count: int = 100) -> Callable[[int], Array]:
    return lambda s: sigmoid(rng(s).normal(-4, 2, (1, count, width)))


def boxes(s: int) -> Array:
    g = rng(s)
    low = g.uniform(0, 300, (1, 100, 2))
    return np.concatenate([low, low + g.uniform(5, 60, (1, 100, 2))], axis=-1)


def attention(rows: int, columns: int) -> Callable[[int], Array]:
    return lambda s: softmax(rng(s).normal(0, 2, (rows, columns)))


def growing(s: int) -> Array:
    """A matrix of which both sides are as long as the two sentences, of any sum."""
    return rng(s).normal(0, 1, (5 + s, 7 + 2 * (s % 5)))


def blob(s: int, channels: int = 1) -> Array:
    """A smooth map with a steep edge, in [0, 1]."""
    yy, xx = np.mgrid[:64, :64]
    centre = rng(s).uniform(20, 44, (channels, 2))
    return np.stack([sigmoid(3 * (15 - np.hypot(yy - a, xx - b))) for a, b in centre])[None]


def wave(length: int, *lead: int) -> Callable[[int], Array]:
    return lambda s: 0.3 * np.sin(np.arange(length) * (0.01 + 0.001 * s)) * np.ones((*lead, 1))


def confident(width: int) -> Callable[[int], Array]:
    """Logits of a trained network: one class stands out."""

    def make(s: int) -> Array:
        x = rng(s).normal(0, 1, (1, width))
        x[0, rng(s + 100).integers(width)] += 8
        return x

    return make


CASES = [
    # one row a sample
    Case("classes", "y", lambda s: softmax(rng(s).normal(0, 3, (1, 10)))),
    Case("classes", "output", lambda s: np.log(softmax(rng(s).normal(0, 3, (1, 10))))),
    Case("classes", "logits", confident(1000)),
    Case("classes", "495", confident(512), op="Gemm"),
    Case("classes", "y", confident(10), op="Gemm"),
    Case("classes", "y", lambda s: softmax(rng(s).normal(0, 3, (1, 5, 1, 1)), axis=1)),
    Case("classes", "start_logits", lambda s: rng(s).normal(0, 3, (1, 10 + s)), TEXT),
    Case("embedding", "output", lambda s: unit(np.maximum(rng(s).normal(0, 1, (1, 256)), 0))),
    Case("embedding", "embedding", lambda s: rng(s).normal(0, 1, (1, 192))),
    Case("embedding", "y", lambda s: np.maximum(rng(s).normal(0, 1, (1, 256)), 0) * 3, op="Relu"),
    Case("embedding", "y", lambda s: rng(s).normal(0, 1, (1, 384)), op="LayerNormalization"),
    Case("embedding", "y", lambda s: rng(s).normal(0, 5, (1, 512)), op="Gemm"),  # scores that look like none
    Case("embedding", "speaker_features", lambda s: rng(s).normal(0, 1, (1, 80))),
    Case("features", "y", lambda s: rng(s).normal(0, 1, (1, 16)), op="GlobalAveragePool"),
    Case("labels", "probs", lambda s: sigmoid(rng(s).normal(-2, 2, (1, 80))), op="Sigmoid"),
    Case("labels", "y", lambda s: sigmoid(rng(s).normal(-2, 2, (1, 1))), op="Sigmoid"),
    Case("labels or regression", "y", lambda s: rng(s).normal(0, 3, (1, 1)), op="Gemm"),
    Case("labels or embedding", "y", lambda s: rng(s).uniform(0, 1, (1, 128)), op="Clip"),
    Case("regression", "age", lambda s: rng(s).normal(0, 3, (1, 1)), op="Gemm"),
    Case("regression", "y", lambda s: 30 + rng(s).normal(0, 8, (1, 1)), op="Gemm"),
    Case("regression", "landmarks", lambda s: rng(s).uniform(0, 112, (1, 136))),
    Case("regression", "y", lambda s: rng(s).uniform(-1, 1, (1, 3)), op="Tanh"),
    Case("classes or regression", "y", lambda s: rng(s).normal([5, -1, 0], 0.5, (1, 3)), op="Gemm"),
    Case("regression", "value", lambda s: rng(s).normal(0, 1, (1,))),
    # many rows a sample
    Case("tokens", "logits", runs(9), TEXT),
    Case("tokens", "y", runs(40), {"x": np.zeros((1, 60, 80), np.float32)}),
    Case("tokens", "y", lambda s: sigmoid(rng(s).normal(0, 2, (1, 50, 1))), SOUND),
    Case("tokens or regression", "y", lambda s: rng(s).normal(0, 2, (1, 50, 1)), SOUND),
    Case("tokens", "logits", spiky(9, 0), TEXT),  # a tagger: O is as frequent as a blank
    Case("ctc", "y", spiky(97, 0), op="Softmax"),
    Case("ctc", "y", spiky(29, 28), SOUND),
    Case("ctc or tokens", "y", spiky(5, 0), SOUND),
    Case("ctc", "ctc_scores", runs(40), SOUND),
    Case("next-token", "logits", lambda s: rng(s).normal(0, 2, (1, 12, 300)), TEXT, tokens=frozenset({300})),
    Case("next-token", "logits", lambda s: rng(s).normal(0, 2, (1, 12, 2000)), TEXT),
    Case("features", "last_hidden_state", lambda s: rng(s).normal(0, 1, (1, 12, 96)), TEXT, op="LayerNormalization"),
    Case("features", "y", lambda s: rng(s).normal(0, 0.7, (1, 6, 32)), {"x": np.zeros((1, 6, 32), np.float32)}),
    Case("features", "present.0.key", lambda s: rng(s).normal(0, 1, (1, 4, 12, 16)), TEXT),
    Case("features", "mel", lambda s: rng(s).normal(0, 1, (1, 24, 20 + s)), TEXT, length=Length.STRETCHED),
    Case("regression", "forecast", lambda s: rng(s).normal(0, 1, (1, 24, 3)), {"x": np.zeros((1, 96, 3), np.float32)}),
    # matrices
    Case("map", "y", growing, TEXT),
    Case("map", "attention", attention(20, 30), TEXT),
    Case("map", "y", lambda s: attention(16, 16)(s)[None], TEXT),
    Case("map", "weights", lambda s: softmax(rng(s).normal(0, 1, (1, 4, 12, 12))), TEXT),
    Case("map", "y", lambda s: np.matmul(a := rng(s).normal(0, 1, (1, 9, 4)), a.swapaxes(1, 2)), TEXT),
    Case("map or tokens", "y", attention(20, 30), TEXT),
    # detectors
    Case("boxes", "output0", detector(6, swap=True)),
    Case("boxes", "output", detector(6)),
    Case("boxes", "output", detector(20, objectness=True)),
    Case("boxes", "output", detector(1)),
    Case("boxes", "output", detector(6, size=1.0)),
    Case("boxes", "scores", places(11), beside={"deltas": lambda s: rng(s).normal(0, 1, (1, 100, 32))}),
    Case("boxes", "boxes", boxes, beside={"scores": places(11)}),
    Case("features", "deltas", lambda s: rng(s).normal(0, 1, (1, 100, 4)), beside={"scores": places(11)}),
    Case("features", "bins", lambda s: rng(s).normal(0, 1, (1, 100, 32)), beside={"cls": places(11)}, op="Conv"),
    Case("boxes", "output", lambda s: encoded(detector(2)(s)), op="Conv"),
    Case("labels", "y", places(11)),
    Case("detections", "dets", lambda s: rng(s).uniform(0, 1, (s, 7)), length=Length.DETECTED),
    # places
    Case("pixels", "y", blob, op="Sigmoid"),
    Case("pixels", "mask", lambda s: rng(s).normal(0, 4, (1, 1, 64, 64))),
    Case("pixels", "y", lambda s: softmax(rng(s).normal(0, 3, (1, 19, 16, 16)), axis=1)),
    Case("pixels", "y", lambda s: rng(s).normal(0, 3, (1, 19, 64, 64))),
    Case("pixels", "y", lambda s: blob(s, 6), op="Sigmoid"),
    Case("pixels or image", "y", lambda s: rng(s).uniform(0, 1, (1, 1, 64, 64)), op="Clip"),
    Case("image", "y", lambda s: rng(s).uniform(0, 1, (1, 3, 128, 128)), op="Clip"),
    Case("image", "y", lambda s: rng(s).uniform(0, 255, (1, 64, 64, 3)), {"x": np.zeros((1, 64, 64, 3), np.float32)}),
    Case("image", "depth", lambda s: rng(s).uniform(0, 9, (1, 1, 64, 64))),
    Case("features", "y", lambda s: rng(s).normal(0, 1, (1, 256, 8, 8)), op="Relu"),
    Case("features", "heatmap", lambda s: rng(s).normal(0, 1, (1, 17, 16, 16))),
    # sounds
    Case("audio", "output", wave(8000, 1), SOUND, op="Tanh"),
    Case("audio", "output", wave(8000, 1, 2), SOUND),
    Case("audio", "audio", lambda s: wave(4000 + 100 * s, 1)(s), TEXT, length=Length.STRETCHED),
    # others
    Case("ids", "y", lambda s: rng(s).integers(0, 9, (1, 12))),
    Case("ids", "durations", lambda s: rng(s).integers(0, 9, (1, 12)), op="Ceil"),
    Case("picked", "y", lambda s: rng(s).normal(0, 1, (s, 3)), length=Length.PICKED),
    Case("features", "y", lambda s: rng(s).normal(0, 1, (1, 2, 3, 4, 5))),
    Case("features", "y", lambda s: np.zeros((1, 0, 4))),
]


@pytest.mark.parametrize("case", CASES, ids=[f"{i} {c.kinds} {c.name}" for i, c in enumerate(CASES)])
def test_what_an_output_is_for(case: Case) -> None:
    found = guess(case)
    assert found.name == case.kinds, found.reason
    assert found.reason


@pytest.mark.parametrize("swap", [True, False])
def test_boxes_are_told_from_scores_by_their_ranges(swap: bool) -> None:
    layout = guess(Case("boxes", "y", detector(6, swap=swap))).layout
    assert (layout.channels % 2, layout.scores, layout.objectness) == (int(not swap), (4, 10), False)
    assert guess(Case("boxes", "y", detector(20, objectness=True))).layout.scores == (4, 25)
    assert guess(Case("boxes", "y", detector(20, objectness=True))).layout.objectness


def test_which_axis_counts_samples() -> None:
    def batch(shape: tuple[int, ...], *inputs: tuple[int, ...]) -> int | None:
        seen = Seen()
        for shape_in in inputs:
            rows = tuple(shape_in[0] if n == -1 else n for n in shape)
            seen.add(["y"], [np.zeros(rows, np.float32)], {"x": np.zeros(shape_in, np.float32)})
        return seen.batch_axis("y")

    assert batch((1, 10), (1, 3)) == 0
    assert batch((4, 10), (4, 3), (4, 3)) == 0
    assert batch((20, 1, 10), (1, 30, 3)) == 1
    assert batch((20, 30), (1, 30, 3)) is None
    assert batch((-1, 10), (5, 3), (7, 3), (6, 3)) is None  # lengths of sequences, not numbers of samples
    assert batch((-1, 10), (8, 3), (8, 3), (3, 3)) == 0  # the last of a batch


def test_the_user_has_the_last_word() -> None:
    case = Case("", "y", lambda s: softmax(rng(s).normal(0, 3, (1, 10))))
    seen = Seen()
    seen.add(["y", "n"], [case.make(0), np.zeros(3, np.int64)], IMAGE)
    found = guessed(seen, asked={"y": "embedding"})
    assert (found["y"].name, found["y"].reason) == ("embedding", "set by --judge")
    assert found["n"].name == "ids"
    with pytest.raises(ConfigError, match="'z', which the model does not have; give one of y, n"):
        guessed(seen, asked={"z": "classes"})
    with pytest.raises(ConfigError, match="holds no floats"):
        guessed(seen, asked={"n": "classes"})
    with pytest.raises(ConfigError, match="holds floats"):
        guessed(seen, asked={"y": "ids"})
