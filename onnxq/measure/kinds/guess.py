"""What each output of a float model is for: guessed from its name, shapes and ranges, and what stands behind it.

Where several kinds fit, all of them are measured and the strictest counts.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from onnxq.errors import ConfigError
from onnxq.kernels.lengths import Length
from onnxq.kernels.meaning import Head, Meaning
from onnxq.measure.kinds.detectors import boxed
from onnxq.measure.kinds.kind import Kind, KindGuess
from onnxq.measure.kinds.layout import NO_SCORES, Layout
from onnxq.measure.kinds.output import Output, sample_shape
from onnxq.measure.kinds.places import places
from onnxq.measure.kinds.seen import Seen
from onnxq.measure.kinds.sequences import LONG, sequence
from onnxq.measure.kinds.vectors import vector

ASKED = "set by --judge"
_LENGTHS = {Length.DETECTED: Kind.DETECTIONS, Length.PICKED: Kind.PICKED}


def guessed(
    seen: Seen,
    *,
    heads: Mapping[str, Head] | None = None,
    lengths: Mapping[str, Length] | None = None,
    asked: Mapping[str, str] | None = None,
) -> dict[str, KindGuess]:
    """By name, what each output that was ``seen`` is for; ``asked``: what the user says of some, kinds by name.

    Raises ``ConfigError`` where there is no such output, or none that can be judged so.
    """
    asked, heads, lengths = asked or {}, heads or {}, lengths or {}
    require_outputs(asked, list(seen.outputs))
    shapes = {name: sample_shape(arrays[0], seen.batch_axis(name)) for name, arrays in seen.outputs.items() if arrays}
    found = {}
    for name in seen.outputs:
        output = Output(name, seen, heads.get(name, Head()), shapes)
        with np.errstate(all="ignore"):  # masks of large negative numbers
            found[name] = _asked(output, Kind(asked[name])) if name in asked else _guess(output, lengths.get(name))
    return found


def require_outputs(asked: Mapping[str, str], names: list[str]) -> None:
    """Raises ``ConfigError`` for a name in ``asked`` that is none of ``names``."""
    for name in asked:
        if name not in names:
            raise ConfigError(f"--judge names the output '{name}', which the model does not have", hint=_one_of(names))


def _one_of(names: list[str]) -> str:
    return f"give one of {', '.join(names[:20])}" + (", ..." if len(names) > 20 else "")


def _guess(output: Output, length: Length | None) -> KindGuess:
    """What ``output`` is for."""
    whole = any(a.dtype.kind != "f" for a in output.seen.outputs[output.name])
    if length in _LENGTHS:
        return KindGuess((_LENGTHS[length],), length.value if length else "", Layout(output.batch))
    if whole and output.head.meaning is Meaning.ROUNDED:
        reason = f"numbers behind {output.head.op}: one more or less is a near tie"
        return KindGuess((Kind.IDS,), reason, Layout(output.batch, rounded=True))
    if whole:
        return KindGuess((Kind.IDS,), "no floats", Layout(output.batch))
    if not output.arrays or not len(output.rows()):
        return KindGuess((Kind.FEATURES,), "it was empty", Layout(output.batch))
    if (word := output.says("state")) and not output.says("features"):
        return output.guess(Kind.FEATURES, reason=f"'{word}' in its name: a state that the next call reads")
    axis = _line(output.shape)
    if axis is not None and not any(output.varies) and not _column_of_rows(output, axis):
        return vector(output, axis)
    rank = len(output.shape)
    if length is Length.STRETCHED and max(output.shape, default=0) < LONG and not output.says("classes"):
        return output.guess(Kind.FEATURES, reason=f"a series of {length.value}")
    if rank <= 2:
        return sequence(output)
    return places(output) if rank == 3 else output.guess(Kind.FEATURES, reason=f"{rank} axes a sample")


def _line(shape: tuple[int, ...]) -> int | None:
    """The axis of a sample along which alone it has any length; None where there are two."""
    long = [i for i, size in enumerate(shape) if size != 1]
    if len(long) > 1:
        return None
    return long[0] if long else -1


def _column_of_rows(output: Output, axis: int) -> bool:
    """Whether ``[T, 1]`` a sample is a number for each of several places, and not one row."""
    long = len(output.shape) == 2 and output.shape[-1] == 1 and output.shape[0] > 1
    return long and not output.layout(axis).distribution


def _asked(output: Output, kind: Kind) -> KindGuess:
    """``output`` judged as the user says."""
    floats = all(a.dtype.kind == "f" for a in output.seen.outputs[output.name])
    if floats == (kind is Kind.IDS) and kind not in (Kind.DETECTIONS, Kind.PICKED):
        what = "floats, which are hardly ever equal" if floats else "no floats"
        fits = "another kind" if floats else f"{Kind.IDS.value} or nothing"
        raise ConfigError(
            f"output '{output.name}' holds {what}: it cannot be judged as {kind.value}", hint=f"give {fits}"
        )
    if not output.arrays:
        return KindGuess((kind,), ASKED, Layout(output.batch))
    if kind is Kind.BOXES:
        alone = output.shape[-1:] == (4,) and not output.layout().distribution
        layout = boxed(output) or (Layout(output.batch, scores=NO_SCORES) if alone else output.layout())
        return output.guess(kind, reason=ASKED, layout=layout)
    if kind in (Kind.PIXELS, Kind.IMAGE) and len(output.shape) == 3:
        return output.guess(kind, reason=ASKED, layout=output.layout(channel_axis(output.shape)))
    axis = _line(output.shape)
    channels = -1 if axis is None or kind in (Kind.MAP, Kind.AUDIO, Kind.TOKENS, Kind.CTC) else axis
    return output.guess(kind, reason=ASKED, layout=output.layout(channels))


def channel_axis(shape: tuple[int, ...]) -> int:
    """The axis of ``[C, H, W]`` or ``[H, W, C]`` that holds channels: the first unless only the last is short."""
    return -1 if shape[-1] <= 4 < shape[0] else 0
