"""The levels of effort as lists of steps: what each of them tries.

| level       | what it does                                                                         | gradients |
|-------------|--------------------------------------------------------------------------------------|-----------|
| `fast`      | each layer refitted to its noisy input in closed form, then rounded (``layerwise``)  | no        |
| `iterative` | the same, channels rounded together by what they cost at the outputs                 | yes       |
|             | (``sensitivity``); then part after part is frozen and all that follows is trained    |           |
| `full`      | instead of parts, everything trained together, and for longer (``joint``); where     | yes       |
|             | there are labels, towards them                                                       |           |

Chudakov et al., Iterative Adaptation to Quantization Noise (IWANN 2021): reduce the noise of one part, freeze it, and
train the layers after it to work with the noise that arose.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

# Parts that are frozen one after the other, and the steps of training for each; all at once takes longer.
_PARTS = 3
_STEPS = 160
_FULL_STEPS = 1500
# Seconds for iterative where nobody said how long: its training gains what it does in the first of them.
_ITERATIVE_SECONDS = 420.0


@dataclass(frozen=True)
class Phase:
    """A step of a level: ``code`` is what a checkpoint knows it by, ``text`` what it is called.

    ``frozen``: the share of weights, in the order of the graph, that stays as earlier steps left it.
    """

    code: str
    text: str
    frozen: Fraction = Fraction(0)


CLOSED_FORM = Phase("closed_form", "closed form")
CHANNELS_TOGETHER = Phase("closed_form_together", "closed form, channels together")


@dataclass(frozen=True)
class Level:
    """What a level does behind the closed form: ``training``, ``steps`` each, in ``seconds`` if nobody says how long.

    ``seconds``: 0 for no limit.
    """

    training: tuple[Phase, ...] = ()
    steps: int = 0
    seconds: float = 0.0


def level_called(name: str, *, labelled: bool = False) -> Level:
    """The ``Level`` of the table above; ``labelled``: whether there are labels to train towards."""
    return {
        "fast": Level(),
        "iterative": Level(_in_parts(_PARTS, labelled), _STEPS, _ITERATIVE_SECONDS),
        "full": Level(_in_parts(1, labelled), _FULL_STEPS),
    }[name]


def _in_parts(parts: int, labelled: bool) -> tuple[Phase, ...]:
    """Training of all that follows, in so many parts, each frozen before the next."""
    if parts == 1:
        return (Phase("train_all", "all trained on labels" if labelled else "all trained"),)
    return tuple(
        Phase(
            f"train_part_{part + 1}_of_{parts}",
            f"part {part + 1} of {parts} trained with all that follows",
            Fraction(part, parts),
        )
        for part in range(parts)
    )
