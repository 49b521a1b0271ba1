"""All weight formats by name, and how to add one."""

from __future__ import annotations

from collections.abc import Callable

from onnxq.config.formats import FAMILIES, Family, FormatName, format_name
from onnxq.errors import ConfigError
from onnxq.weights.blocks import BlockMultiples
from onnxq.weights.codebook import Codebook
from onnxq.weights.format import WeightFormat
from onnxq.weights.nbits import NBits
from onnxq.weights.uniform import Uniform

Make = Callable[[FormatName], WeightFormat]

# By family, what makes the format of a name.
_FORMATS: dict[str, Make] = {
    "int": lambda name: BlockMultiples(name) if name.block else Uniform(name),
    "uint": NBits,
    "codebook": Codebook,
}
_OWN = frozenset(_FORMATS)


def register(family: Family, make: Make) -> None:
    """Makes the formats of ``family`` known: from now on ``Config(weights=...)`` and rules take their names.

    ``make`` gives the format of a name, most often it is a subclass of ``GridFormat``::

        @dataclass(frozen=True)
        class NormalFloat(GridFormat):
            def grid(self, weight, moments, *, qtype, how): ...

        register(Family("nf", (4,), "nf4"), NormalFloat)
        onnxq.quantize(model, data, config=Config(weights="nf4"))

    Raises ``ConfigError`` where another family has the name.
    """
    if family.name in FAMILIES:
        raise ConfigError(f"there is a family of weight formats called '{family.name}' already")
    FAMILIES[family.name] = family
    _FORMATS[family.name] = make


def unregister(family: str) -> None:
    """Forgets the formats of ``family``. Raises ``ConfigError`` where nobody registered it."""
    if family in _OWN or family not in FAMILIES:
        raise ConfigError(f"'{family}' is no family that was registered")
    del FAMILIES[family], _FORMATS[family]


def weight_format(text: str | FormatName) -> WeightFormat:
    """The format called ``text``. Raises ``ConfigError`` for any other text; the message lists what there is."""
    name = format_name(text) if isinstance(text, str) else text
    return _FORMATS[name.family](name)
