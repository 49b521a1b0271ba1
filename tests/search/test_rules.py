"""The rules of acceptance by themselves: of two candidates the better one, and how much data a judgement takes."""

from __future__ import annotations

import numpy as np
import pytest
from claims import scores, verdict

from onnxq.calibrate.feeds import open_feed
from onnxq.config import Config
from onnxq.graph.signature import TensorSpec
from onnxq.search.acceptance import Verdict, promising, ranked_feeds, second_check_samples
from onnxq.search.attempt import split


def says(level: float, agreement: float = 1.0) -> Verdict:
    """The verdict on a candidate with one output of 1000 rows."""
    return verdict(Config(), scores(level=level, agreement=agreement))


# -- of two candidates ------------------------------------------------------------------------------------------------


def test_a_good_candidate_is_started_from_whatever_its_noise() -> None:
    first = says(25.0, agreement=0.5)
    assert not first.good
    assert says(15.0).good
    assert promising(says(15.0), first)
    assert promising(says(26.0, agreement=0.5), first)
    assert not promising(says(25.0, agreement=0.9), first)


# -- how much data a judgement takes ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("elements", "feeds"),
    [(0.0, 8), (1 << 10, 8), (1 << 23, 8), ((1 << 23) + 1, 7), (1 << 24, 4), (1 << 25, 2), (1 << 26, 2), (1 << 30, 2)],
)
def test_two_to_eight_feeds_rank_layers_as_activations_allow(elements: float, feeds: int) -> None:
    """Between the ends so many that they show at most 2^26 elements of activations."""
    assert ranked_feeds(elements) == feeds


@pytest.mark.parametrize(
    ("elements", "samples"),
    [(0.0, 256), (1 << 16, 256), (1 << 17, 128), (1 << 20, 16), (1 << 23, 2), (1 << 24, 1), (1 << 30, 1)],
)
def test_the_second_check_set_shrinks_with_the_model(elements: float, samples: int) -> None:
    """At most 256 samples, of large models so many that they show 2^24 elements of activations, and at least one."""
    assert second_check_samples(elements) == samples


@pytest.mark.parametrize(("count", "adapted"), [(7, False), (8, True)])
def test_eight_samples_are_enough_to_adapt(count: int, adapted: bool) -> None:
    feed = open_feed(np.zeros((count, 3), np.float32), [TensorSpec("x", np.float32, (None, 3))])
    assert (split(feed, Config(adapt="fast", held_out=0.0)).check is not None) is adapted


@pytest.mark.parametrize(("batches", "adapted"), [(3, False), (4, True)])
def test_models_of_a_fixed_batch_need_four_batches_to_adapt(batches: int, adapted: bool) -> None:
    feed = open_feed(np.zeros((batches * 4, 3), np.float32), [TensorSpec("x", np.float32, (4, 3))])
    found = split(feed, Config(adapt="fast", held_out=0.0))
    assert (found.check is not None) is adapted
    assert any("too few to fit weights" in note for note in found.notes) is not adapted
