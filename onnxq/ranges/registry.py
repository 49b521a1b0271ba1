"""All range methods by name, and the text that selects one."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from onnxq.errors import ConfigError
from onnxq.ranges import aciq, entropy, grid, lsq, minmax, mse, percentile, sawb
from onnxq.ranges.method import RangeMethod

METHODS: Mapping[str, RangeMethod] = MappingProxyType(
    {
        m.name: m
        for m in (
            mse.METHOD,
            minmax.METHOD,
            percentile.METHOD,
            entropy.METHOD,
            lsq.LSQ,
            lsq.LSQ_PLUS,
            aciq.METHOD,
            sawb.METHOD,
            grid.METHOD,
        )
    }
)


def find_method(text: str) -> RangeMethod:
    """The method that ``text`` names: a key of ``METHODS`` or ``percentile:P``.

    Raises ``ConfigError`` for any other text; the message lists the valid ones.
    """
    if text in METHODS:
        return METHODS[text]
    name, _, argument = text.partition(":")
    if name == "percentile":
        try:
            percent = float(argument)
        except ValueError:
            raise ConfigError(
                f"{text!r} is no range method", hint="write percentile:P with a number P in (0, 100]"
            ) from None
        return percentile.method(percent)
    raise ConfigError(f"no range method {text!r}", hint=f"choose one of {', '.join(METHODS)}, or percentile:P")
