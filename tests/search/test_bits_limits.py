"""Bits for each layer at the limits of a budget: what fits exactly, and steps that went further than needed."""

from __future__ import annotations

import pytest

from onnxq.search.knapsack import Option, within_bytes, within_noise


def layer(*steps: tuple[int, float]) -> tuple[Option, ...]:
    """Formats by (bytes, noise), the smallest first."""
    return tuple(Option(f"int{bits}", *step) for bits, step in zip((2, 3, 4, 8), steps, strict=False))


def chosen_within_noise(budget: float, **layers: tuple[Option, ...]) -> dict[str, str]:
    return {c.node: c.option.stored for c in within_noise(layers, budget)}


SMALL = layer((100, 1.0), (110, 0.5))  # gains 0.05 a byte
LARGE = layer((1000, 10.0), (1400, 0.0))  # gains 0.025 a byte


@pytest.mark.parametrize(
    ("budget", "small", "large"),
    [
        (11.0, "int2", "int2"),
        (10.5, "int3", "int2"),
        (10.4, "int2", "int3"),  # the large step leaves so much over that the small one is not needed any more
        (1.0, "int2", "int3"),
        (0.99, "int3", "int3"),
        (0.5, "int3", "int3"),
    ],
)
def test_what_the_last_step_leaves_over_is_given_back(budget: float, small: str, large: str) -> None:
    assert chosen_within_noise(budget, small=SMALL, large=LARGE) == {"small": small, "large": large}


def test_the_largest_layer_comes_down_first_and_as_far_as_it_can() -> None:
    """Behind the last step there is room for one of two layers, or for two steps of the larger one."""
    two_steps = layer((200, 0.75), (210, 0.25), (220, 0.0))
    of = {"small": layer((100, 1.0), (110, 0.25)), "larger": two_steps, "large": layer((9000, 16.0), (9900, 0.0))}
    assert chosen_within_noise(1.0, **of) == {"small": "int3", "larger": "int2", "large": "int3"}
    assert chosen_within_noise(0.25, **of) == {"small": "int3", "larger": "int4", "large": "int3"}


@pytest.mark.parametrize(("budget", "expected"), [(1500, "int3"), (1499, "int2"), (1100, "int2"), (1099, None)])
def test_a_budget_of_bytes_is_kept_to_the_byte(budget: int, expected: str | None) -> None:
    found = within_bytes({"large": LARGE, "other": layer((100, 1.0))}, budget)
    assert (None if found is None else found[0].option.stored) == expected


@pytest.mark.parametrize(
    ("budget", "expected"),
    [(219, (100, 100)), (220, (100, 120)), (300, (200, 100)), (319, (200, 100)), (320, (200, 120))],
)
def test_where_a_large_step_does_not_fit_smaller_ones_fill_the_budget(budget: int, expected: tuple[int, int]) -> None:
    """The layer that would gain most a byte needs a hundred more, the other one twenty."""
    steep, flat = layer((100, 90.0), (200, 0.0)), layer((100, 0.2), (120, 0.0))
    found = within_bytes({"steep": steep, "flat": flat}, budget)
    assert found is not None
    assert tuple(c.option.nbytes for c in found) == expected
