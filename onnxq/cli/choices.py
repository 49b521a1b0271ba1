"""The options of the command line that stand for choices of ``Config``, made from its fields.

None means "not given": then the configuration file, the preset or the field's own default decides.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import Field, fields, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from onnxq.config import AUTO, GROUPS, JUDGE_KINDS, PRESETS, Config, load_config
from onnxq.config import preset as find_preset
from onnxq.config.choices import Choice, choice_of, described
from onnxq.errors import ConfigError

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}
_KINDS = {"str": str, "int": int, "float": float}

Preset = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help=f"{', '.join(PRESETS)} (default {next(iter(PRESETS))}): bits of weights and activations; w4 leaves "
        "activations alone.",
    ),
]
ConfigFile = Annotated[
    Path | None, typer.Option(metavar="TOML", help="Read choices from this file; options here override it.")
]
Exclude = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PATTERN",
        help="Keep nodes float by name or operator type, wildcards allowed (head.*, Gemm); may be repeated.",
    ),
]
Judge = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=KIND",
        help="Judge the output NAME as KIND where the guess is wrong; may be repeated. Kinds: "
        f"{', '.join(JUDGE_KINDS)}.",
    ),
]
Ranges = Annotated[
    str | None,
    typer.Option(
        "--range",
        metavar="METHOD",
        help=f"How ranges are chosen: {Config.activation_range} (default), minmax, percentile:99.99, entropy, ...; "
        "for one side only as weights=METHOD or activations=METHOD.",
    ),
]


def planning_choices(**given: Any) -> Config:
    """The ``Config`` of the options that say what is quantized and for which CPU."""
    return _chosen(**given)


def all_choices(*, ranges: str | None = None, judge: list[str] | None = None, **given: Any) -> Config:
    """The ``Config`` of all options."""
    return _chosen(ranges=ranges, judge=judge, commanding=True, **given)


def _chosen(
    *,
    preset: str | None = None,
    config: Path | None = None,
    exclude: list[str] | None = None,
    ranges: str | None = None,
    judge: list[str] | None = None,
    commanding: bool = False,
    **given: Any,
) -> Config:
    """Preset or file first, then each option that was given. Raises ``ConfigError``."""
    if preset is not None and config is not None:
        raise ConfigError("--preset and --config each say everything", hint="give one of them, and options beside it")
    chosen = load_config(config) if config is not None else find_preset(preset or next(iter(PRESETS)))
    changes = {entry.name: _read(choice_of(entry), given[key]) for key, entry in _options() if _given(given.get(key))}
    if commanding:
        for entry in fields(Config):
            command = choice_of(entry).command
            if command is not None and entry.name not in changes and getattr(chosen, entry.name) == entry.default:
                changes[entry.name] = command
    if "size_budget" in changes and "weights" not in changes and chosen.weights == Config.weights:
        changes["weights"] = AUTO  # what a budget is for
    chosen = replace(chosen, **changes)
    if ranges is not None:
        chosen = chosen.with_range(ranges)
    return chosen.with_excluded(tuple(exclude or ())).with_judged(tuple(judge or ()))


def _given(value: Any) -> bool:
    """Whether the option was given: a flag that was not is False."""
    return value is not None and value is not False


def _options(*, planning: bool = False) -> Iterator[tuple[str, Field[Any]]]:
    """The parameter's name and the field of every choice with an option of its own."""
    for _, group in GROUPS:
        for entry in fields(group):
            about = choice_of(entry)
            if about.flag and (about.planning or not planning):
                yield parameter_name(about), entry


def _parameters(*, planning: bool) -> list[inspect.Parameter]:
    """The parameters of a command for the options of ``Config``, in the order of the groups."""
    panels = {entry.name: title for title, group in GROUPS for entry in fields(group)}
    by_hand = {"preset": Preset, "config": ConfigFile, "exclude": Exclude}
    by_hand |= {} if planning else {"ranges": Ranges, "judge": Judge}
    found = [parameter(name, annotation) for name, annotation in by_hand.items()]
    for name, entry in _options(planning=planning):
        about = choice_of(entry)
        default = entry.default if about.command is None else about.command
        kind = str(entry.type).removesuffix(" | None")
        panel = None if planning else panels[entry.name]
        option = typer.Option(
            about.flag,
            metavar=about.metavar or None,
            help=_as_options(described(about, default)),
            rich_help_panel=panel,
        )
        if kind == "bool":
            found.append(parameter(name, Annotated[bool, option], default=False))
        else:
            python = str if about.metavar in _READ else _KINDS[kind]
            found.append(parameter(name, Annotated[python | None, option]))
    return found


def parameter(name: str, annotation: Any, default: Any = None) -> inspect.Parameter:
    """A keyword of a command, which typer makes an option of."""
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def parameter_name(about: Choice) -> str:
    """The name of the parameter that stands for an option: ``size_budget`` for ``--size-budget``."""
    return about.flag.removeprefix("--").replace("-", "_")


def _as_options(text: str) -> str:
    """``text`` with the names of fields as the options that set them."""
    for entry in fields(Config):
        if "_" in entry.name and (flag := choice_of(entry).flag):
            text = text.replace(entry.name, flag)
    return text


def _read(about: Choice, value: Any) -> Any:
    """The value of an option: a time becomes seconds, percent a share."""
    read = _READ.get(about.metavar)
    return value if read is None else read(about.flag, value)


def duration(option: str, text: str) -> float:
    """Seconds of ``90``, ``90s``, ``10m`` or ``1h``. Raises ``ConfigError`` naming ``option`` for anything else."""
    number, unit = text.strip(), 1.0
    if number and number[-1] in _UNITS:
        number, unit = number[:-1], _UNITS[number[-1]]
    try:
        seconds = float(number) * unit
    except ValueError:
        seconds = 0.0
    if not 0.0 < seconds < float("inf"):
        raise ConfigError(f"{option} {text} is no time", hint="give a time as 90s, 10m or 1h")
    return seconds


def drop(option: str, text: str) -> float:
    """What a measure may lose: ``0.005`` as it is, ``0.5%`` as points of a share. Raises ``ConfigError`` otherwise."""
    number = text.strip()
    percent = number.endswith("%")
    try:
        found = float(number.removesuffix("%")) / (100.0 if percent else 1.0)
    except ValueError:
        found = math.nan
    if not 0.0 <= found < math.inf:
        raise ConfigError(
            f"{option} {text} is nothing that a measure may lose",
            hint=f"give points of a share as {option} 0.5%, or a number in the measure's own unit as {option} 0.005",
        )
    return found


# How the text of an option becomes its value, by what stands for that in ``--help``.
_READ: dict[str, Callable[[str, str], Any]] = {"TIME": duration, "DROP": drop}


def spell_out(build: Callable[..., Any], parameters: Iterable[inspect.Parameter]) -> None:
    """Gives ``build`` these parameters in its signature, which is what typer reads."""
    build.__signature__ = inspect.Signature(list(parameters))  # type: ignore[attr-defined]


spell_out(planning_choices, _parameters(planning=True))
spell_out(all_choices, _parameters(planning=False))
