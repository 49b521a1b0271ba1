"""Samples made of others: in the range and the type of the data, and only of what can be mixed."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import Any

import numpy as np
import pytest

from onnxq.calibrate.variants import Inputs, Role, variants

Sample = Mapping[str, np.ndarray[Any, Any]]
RNG = np.random.default_rng(0)


def images(count: int = 6) -> list[Sample]:
    return [{"x": RNG.uniform(-1, 2, (1, 3, 16, 12)).astype(np.float32)} for _ in range(count)]


def sentences(lengths: tuple[int, ...] = (9, 12, 16, 7), mask: type = np.int64) -> list[Sample]:
    """Padded to 16, from 1 (start) over codes of each sentence's own to 2 (end)."""
    found = []
    for number, length in enumerate(lengths):
        ids = np.zeros((1, 16), np.int64)
        ids[0, :length] = [1, *(100 * (number + 1) + i for i in range(length - 2)), 2]
        found.append({"ids": ids, "attention_mask": (ids != 0).astype(mask), "kinds": np.zeros((1, 16), np.int64)})
    return found


def made(samples: list[Sample], count: int = 100, seed: int = 0) -> list[tuple[int, dict[str, Any]]]:
    return list(islice(variants(samples, seed=seed), count))


def test_images_are_mixed_cropped_and_given_noise() -> None:
    samples = images()
    low, high = (f(np.stack([s["x"] for s in samples])) for f in (np.min, np.max))
    found = made(samples)
    for number, sample in found:
        x = sample["x"]
        assert x.dtype == np.float32
        assert x.shape == (1, 3, 16, 12)
        assert x.flags.c_contiguous
        assert low <= x.min()
        assert x.max() <= high
        assert not any(np.array_equal(x, s["x"]) for s in samples)
        # What moves nothing is nearest to its dominant sample.
        assert 0 <= number < len(samples)
    assert len({sample["x"].tobytes() for _, sample in found}) == len(found)


def test_every_sample_is_dominant_in_turn() -> None:
    found = [number for number, _ in made(images(5), 20)]
    assert all(sorted(found[i : i + 5]) == list(range(5)) for i in range(0, 20, 5))


def test_the_dominant_sample_is_the_nearest() -> None:
    """Without crops: features lie in no place."""
    samples = [{"x": RNG.standard_normal((1, 200)).astype(np.float32)} for _ in range(6)]
    for number, sample in made(samples):
        away = [float(np.square(sample["x"] - s["x"]).sum()) for s in samples]
        assert np.argmin(away) == number


def test_the_same_seed_makes_the_same() -> None:
    samples = images()
    first, again, other = (made(samples, 10, seed) for seed in (3, 3, 4))
    assert all(np.array_equal(a["x"], b["x"]) for (_, a), (_, b) in zip(first, again, strict=True))
    assert not all(np.array_equal(a["x"], b["x"]) for (_, a), (_, b) in zip(first, other, strict=True))


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float16])
def test_pixels_stay_whole(dtype: type) -> None:
    samples = [{"x": RNG.integers(3, 200, (1, 3, 8, 8)).astype(dtype)} for _ in range(4)]
    for _, sample in made(samples):
        x = sample["x"]
        assert x.dtype == dtype
        assert np.array_equal(np.floor(x), x)
        assert x.min() >= 3
        assert x.max() < 200


@pytest.mark.parametrize("mask", [np.int64, bool, np.float32])
def test_tokens_are_spliced_where_both_have_some(mask: type) -> None:
    samples = sentences(mask=mask)
    found = made(samples)
    spliced = 0
    for number, sample in found:
        ids, own = sample["ids"][0], samples[number]["ids"][0]
        assert ids.dtype == np.int64
        assert sample["attention_mask"].dtype == mask
        # The mask is that of these tokens, without a hole; a start, an end, and codes of two sentences between.
        assert np.array_equal(sample["attention_mask"][0], (ids != 0).astype(mask))
        length = int((ids != 0).sum())
        assert (ids[:length] != 0).all()
        assert ids[0] == 1
        assert ids[length - 1] == 2
        known = [s["ids"][0] for s in samples]
        assert all(any(k[place] == code for k in known) for place, code in enumerate(ids))
        spliced += len({code // 100 for code in ids if code >= 100}) == 2
        assert np.count_nonzero(ids == own) > 0
    assert spliced > len(found) // 2


def test_what_is_about_an_input_stays() -> None:
    samples = [
        {
            "image": RNG.standard_normal((1, 3, 32, 32)).astype(np.float32),
            "size": np.array([[320.0 + i, 240.5]], np.float32),
            "mask": RNG.integers(0, 2, (1, 32, 32)).astype(np.float32),
            "flag": np.array([True]),
            "kind": np.array(i, np.int64),
        }
        for i in range(4)
    ]
    for number, sample in made(samples):
        assert not np.array_equal(sample["image"], samples[number]["image"])
        for name in ("size", "mask", "flag", "kind"):
            assert np.array_equal(sample[name], samples[number][name]), name


def test_columns_of_codes_stay() -> None:
    samples = [
        {"x": np.array([[RNG.standard_normal(), i % 3, RNG.standard_normal(), 5.0]], np.float32)} for i in range(6)
    ]
    for number, sample in made(samples):
        assert np.array_equal(sample["x"][0, [1, 3]], samples[number]["x"][0, [1, 3]])
        assert not np.array_equal(sample["x"], samples[number]["x"])


def test_samples_of_other_lengths_get_noise() -> None:
    samples = [{"x": RNG.standard_normal((1, 40 + i, 8)).astype(np.float32)} for i in range(4)]
    for number, sample in made(samples):
        assert sample["x"].shape == samples[number]["x"].shape
        assert 0 < np.abs(sample["x"] - samples[number]["x"]).max() < 0.5


@pytest.mark.parametrize(
    "samples",
    [
        [],
        images(1),
        [{"x": np.array([i], np.int64)} for i in range(5)],
        [{"x": np.array([["a"]])} for _ in range(5)],
        [{"x": RNG.integers(0, 2, (1, 8, 8, 1)).astype(np.float32)} for _ in range(5)],
        [{"x": np.full((1, 4), np.nan, np.float32)} for _ in range(5)],
        [{"x": np.array([[1, 2]], np.int64)} for _ in range(5)],
    ],
    ids=["none", "one", "sizes", "text", "masks", "missing values", "too short to cut"],
)
def test_nothing_is_made_of_what_cannot_be_mixed(samples: list[Sample]) -> None:
    assert made(samples) == []


def test_roles() -> None:
    samples = [
        {
            "image": RNG.standard_normal((1, 3, 64, 64)).astype(np.float32),
            "ids": RNG.integers(0, 1000, (1, 300)),
            "shape": np.array([[64.0, 64.0]], np.float32),
        }
        for _ in range(3)
    ]
    assert dict(Inputs.of(samples).roles) == {"image": Role.VALUES, "ids": Role.TOKENS, "shape": Role.FIXED}
