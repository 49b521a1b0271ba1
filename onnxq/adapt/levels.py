"""The levels of effort: what each of them tries, and that nothing is kept which samples kept aside do not bear out.

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

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnx_ir as ir

from onnxq.adapt.checkpoint import Checkpoint, State
from onnxq.adapt.engine import Engine, Schedule, Trained
from onnxq.adapt.gradients import obstacle
from onnxq.adapt.joint import adapt_jointly
from onnxq.adapt.labels import Labels, cross_entropy, labelled
from onnxq.adapt.layerwise import Layer, adapt_layers, linear_layers
from onnxq.adapt.runtime import training_runtime
from onnxq.adapt.samples import Samples, generated, joined, stacked
from onnxq.adapt.sensitivity import output_costs
from onnxq.adapt.simulation import simulated
from onnxq.calibrate.runner import Statistics
from onnxq.config import Config
from onnxq.errors import RuntimeFailure
from onnxq.graph.runtime_model import to_runtime
from onnxq.measure.references import Lost, references
from onnxq.parameters.choose import Parameters
from onnxq.plan import Plan
from onnxq.report.report import Adaptation, Refit, Step
from onnxq.runtime.session import open_session, run

Array = npt.NDArray[Any]
Feed = Mapping[str, Array]
Tell = Callable[[str, int, "int | None"], None]

# Parts that are frozen one after the other, and the steps of training for each; all at once takes longer.
_PARTS = 3
_STEPS = 160
_FULL_STEPS = 1500
# Seconds for iterative where nobody said how long: its training gains what it does in the first of them.
_ITERATIVE_SECONDS = 420.0
_RATES = (1e-3, 3e-3)
# New inputs for each sample, more than enough for the steps that there is time for, and what they may take together.
_GENERATED = 8
_GENERATED_BYTES = 1 << 29
_BATCH = 32


@dataclass
class Adapter:
    """Adapts the parameters of one plan; ``best`` are those of least noise so far on the samples kept aside.

    ``fit`` and ``check`` are batches of disjoint samples. With ``labels`` training is quantization-aware training
    proper, towards them, and what counts is the cross-entropy instead of the noise.
    """

    model: ir.Model
    plan: Plan
    best: Parameters
    statistics: Statistics
    config: Config
    fit: Sequence[Feed]
    check: Sequence[Feed]
    folder: Path
    tell: Tell
    labels: Labels | None = None
    steps: list[Step] = field(default_factory=list)
    layers: tuple[Refit, ...] = ()
    notes: list[str] = field(default_factory=list)

    def run(self, level: str) -> Adaptation:
        """Does all that belongs to ``level``, within the time that the configuration gives.

        Raises ``RuntimeFailure`` where the level needs the training runtime and there is none to be had.
        """
        self._begun = time.monotonic()
        self._seconds = self.config.adapt_seconds or (_ITERATIVE_SECONDS if level == "iterative" else 0.0)
        self._engine = None
        self._rates: tuple[float, ...] = _RATES
        if level != "fast":
            runtime = training_runtime(self.notes.append)
            self._engine = Engine(runtime, self.folder / "training", seed=self.config.seed)
        self._seen = references(to_runtime(self.model, self.folder), self.check)
        self._loss = self._loss_of(self.best)
        start = self.best
        self._checkpoint = Checkpoint(start, self.config)
        if self.config.resume:
            self._resume()
        layers = linear_layers(self.model, self.plan, start, self.statistics, self.config)
        if layers:
            self._closed_form("closed form", start, layers, None)
        if self._engine is not None:
            self._with_gradients(level, start, layers, self._engine)
        measure = "noise" if self.labels is None else "cross-entropy"
        return Adaptation(level, tuple(self.steps), self.layers, tuple(self.notes), measure)

    def _resume(self) -> None:
        """Goes on where an adaptation that was interrupted had come to."""
        state = self._checkpoint.load()
        if state is None:
            self.notes.append("nothing to resume: no adaptation of this model with these choices and data was begun")
            return
        self.best, self._rates, self.steps, self.layers = state.best, state.rates, list(state.steps), state.layers
        self._loss = self._loss_of(self.best)
        self.notes.append(f"resumed behind: {self.steps[-1].what}")

    def _done(self, what: str) -> bool:
        """Whether the step was taken before the adaptation was interrupted."""
        return any(step.what == what for step in self.steps)

    def _closed_form(
        self, what: str, start: Parameters, layers: Sequence[Layer], costs: Mapping[str, Array] | None
    ) -> None:
        if self._done(what):
            return
        begun = time.monotonic()

        def progress(done: int, total: int) -> None:
            self.tell("adapt", done, total)

        found, refits = adapt_layers(
            self.model, self.plan, start, layers, self.config, self.fit, costs=costs, progress=progress
        )
        if self._offer(what, found, begun):
            self.layers = refits
        self._keep()

    def _with_gradients(self, level: str, start: Parameters, layers: Sequence[Layer], engine: Engine) -> None:
        """What ``iterative`` and ``full`` add."""
        if (wall := obstacle(self.model)) is not None:
            self.notes.append(f"adapted in closed form only: {wall}")
            return
        samples = self._samples(self.fit)
        aside = self._samples(self.check)
        if samples is None or aside is None:
            self.notes.append(
                "adapted in closed form only: inputs and outputs are no samples of one shape each, along the first axis"
            )
            return
        packed = any(w.stored.packed for w in self.plan.weights)
        together = "closed form, channels together"
        if layers and packed and not self._done(together):  # 8 bits are rounded to nearest: there is nothing to choose
            costs = self._tried(
                "what errors cost",
                lambda: output_costs(
                    self.model,
                    {layer.name: layer.geometry for layer in layers},
                    samples,
                    engine,
                    progress=lambda done, total: self.tell("gradients", done, total),
                ),
            )
            if costs:
                self._closed_form(together, start, layers, costs)
        if self.labels is None:
            every = self._with_generated(samples, aside)
        else:
            every = labelled([(aside, self.labels.check), (samples, self.labels.fit)])
        fit, check = range(aside.count, every.count), range(aside.count)
        order = [w.node for w in self.plan.weights]
        parts = _PARTS if level == "iterative" else 1
        for part in range(parts):
            frozen = order[: len(order) * part // parts]
            towards = "" if self.labels is None else " on labels"
            what = (
                f"all trained{towards}" if parts == 1 else f"part {part + 1} of {parts} trained with all that follows"
            )
            steps = _STEPS if level == "iterative" else _FULL_STEPS
            left = self._seconds_left()
            if left is not None and left < 1.0:
                self.notes.append(f"no time left for: {what}")
                break
            schedule = Schedule(
                steps,
                self._rates,
                batch=self._rows or _BATCH,
                every=max(10, steps // 20),
                seconds=(left or 0.0) / (parts - part),
            )
            if not self._train(what, every, fit, check, schedule, frozen, engine):
                break

    def _train(
        self,
        what: str,
        every: Samples,
        fit: Sequence[int],
        check: Sequence[int],
        schedule: Schedule,
        frozen: Sequence[str],
        engine: Engine,
    ) -> bool:
        """Whether the training runtime could do it."""
        if self._done(what):
            return True
        begun = time.monotonic()

        def progress(done: int, total: int, loss: float) -> None:
            self.tell(f"train ({what})", done, total)

        def trained() -> tuple[Parameters, Trained | None]:
            return adapt_jointly(
                self.model,
                self.plan,
                self.best,
                every,
                schedule,
                engine,
                fit=fit,
                check=check,
                frozen=frozen,
                progress=progress,
            )

        found = self._tried(what, trained)
        if found is None:
            return False
        if found[1] is not None:
            if found[1].rate > 0.0:
                self._rates = (found[1].rate,)  # found once: the parts are of one network
            if not found[1].finished:
                self.notes.append(f"{what}: the training process died; what it had found by then was judged")
            self._offer(what, found[0], begun, found[1].curve)
            self._keep()
        return True

    def _tried(self, what: str, action: Callable[[], Any]) -> Any:
        """The value of ``action``; None, and a note, where the training runtime fails at it."""
        try:
            return action()
        except RuntimeFailure as error:
            self.notes.append(f"{what}: {error}")
            return None

    def _offer(
        self, what: str, found: Parameters, begun: float, curve: tuple[tuple[int, float, float], ...] = ()
    ) -> bool:
        """Takes ``found`` if it makes less noise than the best so far, or labels are more probable with it.

        Less noise on all samples together, and on the typical one: where a few hold most of the energy, a step that
        happens to suit those few would be taken at the cost of all others.
        """
        after = self._loss_of(found)
        better = after.noise < self._loss.noise and after.typical <= self._loss.typical
        self.steps.append(Step(what, self._loss.noise, after.noise, better, time.monotonic() - begun, curve))
        if better:
            self.best, self._loss = found, after
        return better

    def _keep(self) -> None:
        """Puts on disk how far the adaptation has come."""
        problem = self._checkpoint.save(State(self.best, self._rates, tuple(self.steps), self.layers))
        if problem is not None and problem not in self.notes:
            self.notes.append(problem)

    def _loss_of(self, parameters: Parameters) -> Lost:
        """What the samples kept aside lose; with labels nats a label, which say all there is to say."""
        model = simulated(self.model, self.plan, parameters)
        if self.labels is None:
            return self._seen.measured_once(to_runtime(model, self.folder))
        return Lost(cross_entropy(self._outputs(model, self.check), self.labels.check), 0.0)

    def _outputs(self, model: ir.Model, feeds: Iterable[Feed]) -> list[dict[str, Array]]:
        session = open_session(to_runtime(model, self.folder))
        names = [v.name or "" for v in model.graph.outputs]
        return [dict(zip(names, run(session, feed), strict=True)) for feed in feeds]

    def _samples(self, feeds: Sequence[Feed]) -> Samples | None:
        return stacked(feeds, self._outputs(self.model, feeds), rows=self._rows)

    @property
    def _rows(self) -> int | None:
        """The rows that the model takes at a time, where that is fixed."""
        firsts = {v.shape[0] if v.shape is not None and len(v.shape) else None for v in self.model.graph.inputs}
        first = firsts.pop() if len(firsts) == 1 else None
        return first if isinstance(first, int) else None

    def _with_generated(self, samples: Samples, aside: Samples) -> Samples:
        """Those kept ``aside``, then all others and what is made of them."""
        held = sum(array.nbytes for array in samples.inputs.values())
        times = min(_GENERATED, max(1, _GENERATED_BYTES // max(held, 1)))
        more = generated(samples.inputs, times, seed=self.config.seed)
        size = self._rows or _BATCH
        rows = range(0, samples.count * times, size)
        made = self._samples([{name: array[i : i + size] for name, array in more.items()} for i in rows])
        return joined([aside, samples] + ([] if made is None else [made]))

    def _seconds_left(self) -> float | None:
        """None: there is no limit."""
        return self._seconds - (time.monotonic() - self._begun) if self._seconds else None
