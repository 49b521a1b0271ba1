"""Made-up inputs that a model runs with, where there is no data: of what sizes, and what decides how it computes.

Floats and indices are drawn as for the word ``random``. Inputs that hold sizes, steps, axes or conditions are not: a
step of 0 never ends, a frame of 0 samples ends the process. They are the same in all samples, and the first of a few
values is taken that the model runs with, in a child process.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import onnx_ir as ir

from onnxq.calibrate.casting import Array
from onnxq.calibrate.feeds import Feed, FeedOptions
from onnxq.calibrate.first_run import before_first_run, memory_for
from onnxq.calibrate.layout import Layout
from onnxq.calibrate.pinned import pinned
from onnxq.calibrate.random_data import RandomSource
from onnxq.errors import ConfigError, ModelError, OnnxqError
from onnxq.graph.deciding import deciding_inputs
from onnxq.graph.signature import TensorSpec
from onnxq.runtime.session import open_session, run
from onnxq.runtime.trial import Died, tried

# Samples at a time: the moments of a layer with few pixels need several.
BATCH = 8
SAMPLES = 64

# Sizes tried for dimensions that the model leaves open; the first that the model runs with is taken.
_OPEN_SIZES = (224, 64, 128, 32, 16, 8, 1)
# Of inputs that decide, so many combinations of sizes and values are tried, the first alone, as it mostly serves.
_MOST_TRIED = 24
NOT_RUN = "nothing was run, as the model runs on no made-up input"

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class MadeUp:
    """``feed``: the inputs, None where there are none that the model runs with. ``note``: what to say about them."""

    feed: Feed | None
    note: str = ""


def made_up(
    model: ir.Model, runnable: bytes | Path, inputs: Sequence[TensorSpec], options: FeedOptions | None
) -> MadeUp:
    """The first made-up inputs that ``runnable`` runs with, whose graph is ``model``.

    Raises ``ModelError`` where whatever is tried would fill the memory.
    """
    deciding = deciding_inputs(model) & {spec.name for spec in inputs}
    if deciding:
        return _tried_apart(model, runnable, random_settings(inputs, options, deciding))
    too_large: ModelError | None = None
    reason = "none can be made up"
    for feed in random_feeds(inputs, options):
        one = next(iter(feed))
        try:
            before_first_run(model, runnable, one)
            run(open_session(runnable), one)
        except Died:
            raise  # of floats and indices this does not depend
        except ModelError as error:
            too_large = error
        except OnnxqError as error:
            too_large, reason = None, error.what
        else:
            return MadeUp(feed)
    if too_large is not None:
        raise too_large
    return MadeUp(None, f"{NOT_RUN}: {reason}")


def _tried_apart(model: ir.Model, runnable: bytes | Path, candidates: Iterator[Feed]) -> MadeUp:
    """The first of ``candidates`` that ``runnable`` runs with in a child process."""
    reason, many = "none can be made up", 1
    while some := tuple(islice(candidates, many)):
        firsts = [next(iter(feed)) for feed in some]
        found = tried(runnable, firsts, memory=max(memory_for(model, one) for one in firsts))
        if found.ran is not None:
            feed = some[found.ran]
            assert isinstance(feed.source, RandomSource)
            return MadeUp(feed, f"inputs that decide how the model computes were made up: {_listed(feed.source.same)}")
        reason, many = found.reasons[-1], _MOST_TRIED
    return MadeUp(None, f"{NOT_RUN}: {reason}")


def random_settings(
    inputs: Sequence[TensorSpec], options: FeedOptions | None, deciding: Collection[str]
) -> Iterator[Feed]:
    """Random feeds with the inputs ``deciding`` set to what they may have to be, the likeliest first; not too many."""
    every = (feed for setting in SETTINGS for feed in random_feeds(inputs, options, deciding, setting))
    return islice(every, _MOST_TRIED)


def failing(model: ir.Model, runnable: bytes | Path, feed: Feed) -> str | None:
    """Why ``runnable`` fails on one of ``feed``, in a child process; None where it runs on each."""
    for one in feed:
        found = tried(runnable, [one], memory=memory_for(model, one))
        if found.ran is None:
            return found.reasons[0]
    return None


def _listed(values: Mapping[str, Array]) -> str:
    return ", ".join(f"{name} {np.array2string(value, threshold=8, separator=', ')}" for name, value in values.items())


def random_feeds(
    inputs: Sequence[TensorSpec],
    options: FeedOptions | None = None,
    deciding: Collection[str] = (),
    setting: Setting | None = None,
) -> Iterator[Feed]:
    """Feeds of ``BATCH`` random samples for a model with ``inputs``, one for each size of open dimensions.

    ``deciding``: inputs that hold in all samples what ``setting`` says, and so do scalars. None where no random data
    can be made (an input of strings, or of unknown rank).
    """
    options = options or FeedOptions()
    if not inputs:
        return
    open_dims = {
        dim if isinstance(dim, str) else f"{spec.name}.{axis}"
        for spec in inputs
        for axis, dim in enumerate(spec.shape or ())
        if not isinstance(dim, int)
    }
    for size in _OPEN_SIZES if open_dims - set(options.dims) else (1,):
        # The batch axis must not be pinned: which axis that is, the feed knows better.
        for left_open in (_first_dims(inputs), set[str]()):
            dims = {**dict.fromkeys(open_dims - left_open, size), **options.dims}
            try:
                layout = Layout.of(pinned(inputs, dims), BATCH, options.batch_axes)
                # A vector of fixed length that decides is one for all samples, though its length be that of a batch.
                vectors = {s.name for s in inputs if s.shape is not None and _is_vector(s.shape)} & set(deciding)
                layout = replace(layout, axes={n: axis for n, axis in layout.axes.items() if n not in vectors})
                source = RandomSource(layout, SAMPLES, options.seed)
            except ConfigError:
                raise
            except OnnxqError:
                continue
            if setting is not None:
                source = RandomSource(layout, SAMPLES, options.seed, same=_set(source, layout, deciding, setting))
            yield Feed(source, layout)
            break


def _set(source: RandomSource, layout: Layout, deciding: Collection[str], setting: Setting) -> dict[str, Array]:
    """What deciding inputs and scalars hold."""
    first = source[0].arrays
    shapes = {
        name: tuple(layout.rows if axis == layout.axes.get(name) else n for axis, n in enumerate(array.shape))
        for name, array in first.items()
        if name not in deciding
    }
    found = dict[str, Array]()
    for spec in layout.inputs:
        drawn = first[spec.name]
        if spec.name in deciding:
            found[spec.name] = setting(drawn, shapes).astype(drawn.dtype).reshape(drawn.shape)
        elif drawn.shape in ((), (1,)) and drawn.dtype.kind == "f":
            found[spec.name] = np.full_like(drawn, 0.5)  # a threshold or a factor
    return found


def _like_an_input(drawn: Array, shapes: Shapes) -> Array:
    """The shape of an input with as many dimensions as there are numbers; 2 where there is none, of a scalar too."""
    found = next((shape for shape in shapes.values() if drawn.ndim == 1 and len(shape) == drawn.size), None)
    return np.full(drawn.shape, 2) if found is None else np.array(found)


# What inputs that decide hold, as a function of a draw and the shapes of the others, in the order of trying.
Setting = Callable[[Array, Shapes], Array]
SETTINGS: tuple[Setting, ...] = (
    lambda drawn, _: np.ones(drawn.shape),
    lambda drawn, _: np.arange(drawn.size),  # axes
    _like_an_input,
    lambda drawn, _: np.array([-1, *[1] * (drawn.size - 1)])[: drawn.size],  # a shape, whatever has it
    lambda drawn, _: drawn,
    lambda drawn, _: np.zeros(drawn.shape),
)


def _is_vector(shape: tuple[int | str | None, ...]) -> bool:
    return len(shape) == 1 and isinstance(shape[0], int)


def _first_dims(inputs: Sequence[TensorSpec]) -> set[str]:
    first = set[str]()
    for spec in inputs:
        if spec.shape and not isinstance(spec.shape[0], int):
            first.add(spec.shape[0] if isinstance(spec.shape[0], str) else f"{spec.name}.0")
    return first
