"""Finished steps of an adaptation on disk, so that one that was interrupted can go on where it was.

A checkpoint lies in onnxq's cache under a hash of the parameters that adapting starts from and of the configuration:
another model, other data or other choices are another adaptation. The newest few are kept.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from onnxq._version import __version__
from onnxq.config import Config
from onnxq.files.cache import cache_folder, in_one_stroke
from onnxq.numerics import QuantParams
from onnxq.parameters.choose import Parameters
from onnxq.report.report import Refit, Step
from onnxq.weights import StoredWeight

_KEPT = 4


@dataclass(frozen=True)
class State:
    """Where an adaptation stands: the ``best`` parameters so far, the rates to go on with, and what was done."""

    best: Parameters
    rates: tuple[float, ...]
    steps: tuple[Step, ...]
    layers: tuple[Refit, ...]


class Checkpoint:
    """The file of one adaptation, which starts from ``base``."""

    def __init__(self, base: Parameters, config: Config) -> None:
        self._base = base
        self.path = cache_folder() / "adaptation" / f"{_key(base, config)}.npz"

    def save(self, state: State) -> str | None:
        """Writes the file in one stroke and removes the oldest others; what went wrong, in words, or None."""
        arrays = dict(_arrays(state.best))
        said = {
            "rates": state.rates,
            "steps": [asdict(step) for step in state.steps],
            "layers": [asdict(layer) for layer in state.layers],
        }
        try:
            with in_one_stroke(self.path) as half, half.open("wb") as file:
                np.savez(file, state=np.asarray(json.dumps(said)), **arrays)  # type: ignore[arg-type]
            others = sorted(self.path.parent.glob("*.npz"), key=lambda p: p.stat().st_mtime)
            for old in others[:-_KEPT]:
                old.unlink(missing_ok=True)
        except OSError as error:
            return f"progress could not be saved in {self.path.parent} ({error.strerror or error})"
        return None

    def load(self) -> State | None:
        """What was saved last; None where there is nothing, or nothing that can be read."""
        try:
            with np.load(self.path) as archive:
                said = json.loads(str(archive["state"]))
                best = _restored(self._base, archive)
            steps = tuple(Step(**{**s, "curve": tuple(tuple(point) for point in s["curve"])}) for s in said["steps"])
            return State(best, tuple(said["rates"]), steps, tuple(Refit(**layer) for layer in said["layers"]))
        except (OSError, ValueError, KeyError, TypeError, BadZipFile):
            return None


def _key(base: Parameters, config: Config) -> str:
    """Of everything that decides what the steps find; not of how long they may take."""
    choices = replace(config, resume=False, adapt_seconds=0.0, latency_seconds=0.0)
    found = hashlib.sha256(json.dumps([__version__, asdict(choices)], sort_keys=True).encode())
    for name, array in _arrays(base):
        found.update(f"{name} {array.dtype} {array.shape}".encode())
        found.update(np.ascontiguousarray(array).data)
    return found.hexdigest()


def _arrays(parameters: Parameters) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    """Every array under a name; names say which, in the order of the dictionaries."""
    for i, chosen in enumerate(parameters.tensors.values()):
        yield f"t{i}_scale", chosen.scale
        yield f"t{i}_zero", chosen.zero_point
    for i, weight in enumerate(parameters.weights.values()):
        yield f"w{i}_codes", weight.codes
        yield f"w{i}_scale", weight.params.scale
        yield f"w{i}_zero", weight.params.zero_point
        for name, array in weight.representation.state().items():
            yield f"w{i}_stored_{name}", array
    names = json.dumps([list(place) for place in parameters.biases])
    yield "biases", np.frombuffer(names.encode(), np.uint8)
    for i, bias in enumerate(parameters.biases.values()):
        yield f"b{i}", bias


def _restored(base: Parameters, archive: np.lib.npyio.NpzFile) -> Parameters:
    """``base`` with the arrays of ``archive``: types and granularities are what they were."""

    def again(old: QuantParams, name: str) -> QuantParams:
        return replace(old, scale=archive[f"{name}_scale"], zero_point=archive[f"{name}_zero"])

    tensors = {key: again(old, f"t{i}") for i, (key, old) in enumerate(base.tensors.items())}
    weights = {
        key: StoredWeight(
            archive[f"w{i}_codes"],
            again(old.params, f"w{i}"),
            replace(old.representation, **{n: archive[f"w{i}_stored_{n}"] for n in old.representation.state()}),
        )
        for i, (key, old) in enumerate(base.weights.items())
    }
    places = [(node, index) for node, index in json.loads(archive["biases"].tobytes())]
    return Parameters(tensors, weights, {place: archive[f"b{i}"] for i, place in enumerate(places)})
