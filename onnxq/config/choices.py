"""What a choice of the user is: its help, unit, bounds and options, beside its default; and the check of a value.

The command line's options, the reference of the configuration file and the validation are all made from this.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from dataclasses import Field, dataclass, field
from typing import Any

from onnxq.errors import ConfigError

_KEY = "choice"


@dataclass(frozen=True)
class Choice:
    """One choice, apart from its default.

    ``help``: what it says, as a phrase without a full stop. ``unit``: of its number. ``options``: the values there are
    (empty: any). ``least``, ``most``: bounds of its number, themselves allowed; ``above``, ``below``: not allowed.
    ``flag``: its option on the command line (empty: none of its own). ``metavar``: what stands for its value there.
    ``planning``: whether it also decides what can be said of a model without running it. ``command``: the default of
    the command line, where that is another one. ``written``: the default as people write it, where that is not the
    number itself. ``panel``: under which title ``--help`` has it, where that is not that of its group. ``code``:
    whether it names code, which is taken from the command line or a call, never out of a file.
    """

    help: str
    unit: str = ""
    options: tuple[Any, ...] = ()
    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None
    flag: str = ""
    metavar: str = ""
    planning: bool = False
    command: Any = None
    written: str = ""
    panel: str = ""
    code: bool = False

    @property
    def bounds(self) -> str:
        """The bounds in words; empty where there are none."""
        if self.least is not None and self.most is not None:
            return f"from {self.least:g} to {self.most:g}"
        if self.above is not None and self.below is not None:
            return f"between {self.above:g} and {self.below:g}"
        return "" if self.least is None else f"at least {self.least:g}"


def choice(default: Any, help: str, **about: Any) -> Any:
    """A dataclass field with this default that carries its ``Choice``."""
    return field(default=default, metadata={_KEY: Choice(help, **about)})


def choice_of(entry: Field[Any]) -> Choice:
    """The ``Choice`` of a field made by ``choice``."""
    found: Choice = entry.metadata[_KEY]
    return found


def is_choice(entry: Field[Any]) -> bool:
    """Whether a field carries a ``Choice``."""
    return _KEY in entry.metadata


def checked(name: str, value: Any, kind: str, about: Choice) -> Any:
    """``value`` as the plain type that ``kind`` names (``"float | None"``), if it is one that ``about`` allows.

    Raises ``ConfigError`` naming the choice and what it takes.
    """
    if value is None and "None" in kind:
        return None
    plain = _plain(name, value, kind.removesuffix(" | None"))
    if about.options and plain not in about.options:
        raise ConfigError(f"{name} is one of {', '.join(map(str, about.options))}, not '{plain}'")
    if isinstance(plain, (int, float)) and not _within(plain, about):
        share = "a share " if about.unit == "share" else ""
        must = "must be" if about.bounds.startswith("at least") else "is"
        raise ConfigError(f"{name} {must} {share}{about.bounds}, not {plain:g}")
    return plain


def _plain(name: str, value: Any, kind: str) -> Any:
    """``value`` as ``kind``: whole numbers are floats too, nothing else is anything else."""
    truth = isinstance(value, bool)
    if kind == "float" and isinstance(value, numbers.Real) and not truth:
        if not math.isfinite(value):
            raise ConfigError(f"{name} must be a finite number, not {value}")
        return float(value)
    if kind == "int" and isinstance(value, numbers.Integral) and not truth:
        return int(value)
    if (kind == "bool" and truth) or (kind == "str" and isinstance(value, str)):
        return value
    raise ConfigError(f"{name} must be {kind}, not {value!r}")


def _within(value: float, about: Choice) -> bool:
    return (
        (about.least is None or value >= about.least)
        and (about.most is None or value <= about.most)
        and (about.above is None or value > about.above)
        and (about.below is None or value < about.below)
    )


def described(about: Choice, default: Any) -> str:
    """Help, values and default as one sentence, for ``--help`` and the reference."""
    text = about.help
    if about.options:
        text += f": {', '.join(map(str, about.options))}"
    elif about.unit == "share":
        text += f", {about.bounds}"
    if about.written:
        return f"{text} (default {about.written})."
    if default is not None and default != "" and default is not False and default != ():
        text += f" (default {default:g})" if isinstance(default, float) else f" (default {default})"
    return f"{text}."


def unknown_key(key: str, known: Mapping[str, Any]) -> ConfigError:
    """The error that names ``key`` and lists what there is."""
    return ConfigError(f"unknown key '{key}'", hint=f"known are {', '.join(known)}")
