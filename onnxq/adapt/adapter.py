"""Takes the steps of a level, and keeps of each only what held-out samples bear out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnx_ir as ir

from onnxq.adapt.checkpoint import Checkpoint, State
from onnxq.adapt.engine import Engine
from onnxq.adapt.gradients import obstacle
from onnxq.adapt.joint import adapt_jointly
from onnxq.adapt.judging import OutputLoss, outputs_of
from onnxq.adapt.labels import Labels, labelled
from onnxq.adapt.layerwise import Layer, adapt_layers, linear_layers
from onnxq.adapt.levels import CHANNELS_TOGETHER, CLOSED_FORM, Level, Phase, level_called
from onnxq.adapt.runtime import training_runtime
from onnxq.adapt.samples import Samples, Split, generated, joined, stacked
from onnxq.adapt.sensitivity import output_costs
from onnxq.adapt.simulation import Simulation
from onnxq.adapt.trainer import Schedule, Trained, Trainer
from onnxq.calibrate.runner import Statistics
from onnxq.config import Config
from onnxq.errors import RuntimeFailure
from onnxq.files.scratch import Scratch
from onnxq.measure.references import Lost
from onnxq.parameters.choose import Parameters
from onnxq.plan import Plan
from onnxq.report.report import Adaptation, Refit, Step

Array = npt.NDArray[Any]
Feed = Mapping[str, Array]
Tell = Callable[[str, int, "int | None"], None]

# Rates that are tried once.
_RATES: tuple[float, ...] = (1e-3, 3e-3)
# New inputs for each sample, more than enough for the steps that there is time for, and what they may take together.
_GENERATED = 8
_GENERATED_BYTES = 1 << 29
_BATCH = 32


@dataclass
class Adapter:
    """Adapts the parameters of one plan; ``best`` are those of least noise so far on the held-out samples.

    ``fit`` and ``check`` are batches of disjoint samples. With ``labels`` training is quantization-aware training
    proper, towards them, and what counts is the cross-entropy instead of the noise. ``rows_first``: whether the first
    axis of every input counts samples, so that batches can be taken apart and joined there.
    """

    model: ir.Model
    plan: Plan
    best: Parameters
    statistics: Statistics
    config: Config
    fit: Iterable[Feed]
    check: Sequence[Feed]
    folder: Path
    tell: Tell
    labels: Labels | None = None
    rows_first: bool = True
    scratch: Scratch = field(default_factory=Scratch)
    steps: list[Step] = field(default_factory=list)
    layers: tuple[Refit, ...] = ()
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._begun = time.monotonic()
        self._rates: tuple[float, ...] = _RATES
        self._judge = OutputLoss.of(self.model, self.plan, self.check, self.labels, self.folder)
        self._loss = self._loss_of(self.best)
        self._checkpoint = Checkpoint(self.best, self.config)

    def run(self, level: str) -> Adaptation:
        """Does all that belongs to ``level``, within the time that the configuration gives.

        Raises ``NoTrainingRuntime`` where the level needs the training runtime and there is none to be had.
        """
        chosen = level_called(level, labelled=self.labels is not None)
        trainer = None
        if chosen.training:
            runtime = training_runtime(self.notes.append)
            trainer = Engine(runtime, self.folder / "training", seed=self.config.seed)
        start = self.best
        if self.config.resume:
            self._resume()
        layers = linear_layers(self.model, self.plan, start, self.statistics, self.config)
        if layers:
            self._closed_form(CLOSED_FORM, start, layers, None)
        if trainer is not None:
            self._with_gradients(chosen, start, layers, trainer)
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

    def _done(self, phase: Phase) -> bool:
        """Whether the step was taken before the adaptation was interrupted."""
        return any(step.code == phase.code for step in self.steps)

    def _closed_form(
        self, phase: Phase, start: Parameters, layers: Sequence[Layer], costs: Mapping[str, Array] | None
    ) -> None:
        if self._done(phase):
            return
        begun = time.monotonic()

        def progress(done: int, total: int) -> None:
            self.tell("adapt", done, total)

        begin = Simulation(self.model, self.plan, start)
        found, refits = adapt_layers(
            begin, layers, self.config, self.fit, costs=costs, scratch=self.scratch, progress=progress
        )
        if self._offer(phase, found, begun):
            self.layers = refits
        self._keep()

    def _with_gradients(self, level: Level, start: Parameters, layers: Sequence[Layer], trainer: Trainer) -> None:
        """What the levels that train add."""
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
        self._channels_together(start, layers, samples, trainer)
        if self.labels is None:
            every = self._with_generated(samples, aside)
        else:
            every = labelled([(aside, self.labels.check), (samples, self.labels.fit)])
        split = Split(every, fit=range(aside.count, every.count), check=range(aside.count))
        order = [w.node for w in self.plan.weights]
        budget = self.config.adapt_seconds or level.seconds
        for done, phase in enumerate(level.training):
            left = budget - (time.monotonic() - self._begun) if budget else None
            if left is not None and left < 1.0:
                self.notes.append(f"no time left for: {phase.text}")
                break
            schedule = Schedule(
                level.steps,
                self._rates,
                batch=self._rows or _BATCH,
                every=max(10, level.steps // 20),
                seconds=(left or 0.0) / (len(level.training) - done),
            )
            frozen = order[: int(len(order) * phase.frozen)]
            if not self._train(phase, split, schedule, frozen, trainer):
                break

    def _channels_together(
        self, start: Parameters, layers: Sequence[Layer], samples: Samples, trainer: Trainer
    ) -> None:
        """The closed form again, channels rounded together by what their errors cost at the outputs."""
        packed = any(w.stored.packed for w in self.plan.weights)
        if not layers or not packed or self._done(CHANNELS_TOGETHER):
            return  # 8 bits are rounded to nearest: there is nothing to choose
        costs = self._tried(
            "what errors cost",
            lambda: output_costs(
                self.model,
                {layer.name: layer.geometry for layer in layers},
                samples,
                trainer,
                progress=lambda done, total: self.tell("gradients", done, total),
            ),
        )
        if costs:
            self._closed_form(CHANNELS_TOGETHER, start, layers, costs)

    def _train(
        self,
        phase: Phase,
        split: Split,
        schedule: Schedule,
        frozen: Sequence[str],
        trainer: Trainer,
    ) -> bool:
        """Whether the trainer could do it."""
        if self._done(phase):
            return True
        begun = time.monotonic()

        def progress(done: int, total: int, loss: float) -> None:
            self.tell(f"train ({phase.text})", done, total)

        def trained() -> tuple[Parameters, Trained | None]:
            return adapt_jointly(
                Simulation(self.model, self.plan, self.best),
                split,
                schedule,
                trainer,
                frozen=frozen,
                progress=progress,
            )

        found = self._tried(phase.text, trained)
        if found is None:
            return False
        if found[1] is not None:
            if found[1].rate > 0.0:
                self._rates = (found[1].rate,)  # found once: the parts are of one network
            if not found[1].finished:
                self.notes.append(f"{phase.text}: the training process died; what it had found by then was judged")
            self._offer(phase, found[0], begun, found[1].curve)
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
        self, phase: Phase, found: Parameters, begun: float, curve: tuple[tuple[int, float, float], ...] = ()
    ) -> bool:
        """Takes ``found`` if it makes less noise than the best so far, or labels are more probable with it.

        Less noise on all samples together, and on the typical one: where a few hold most of the energy, a step that
        happens to suit those few would be taken at the cost of all others.
        """
        after = self._loss_of(found)
        better = after.noise < self._loss.noise and after.typical <= self._loss.typical
        seconds = time.monotonic() - begun
        self.steps.append(Step(phase.text, self._loss.noise, after.noise, better, seconds, curve, phase.code))
        if better:
            self.best, self._loss = found, after
        return better

    def _keep(self) -> None:
        """Puts on disk how far the adaptation has come."""
        problem = self._checkpoint.save(State(self.best, self._rates, tuple(self.steps), self.layers))
        if problem is not None and problem not in self.notes:
            self.notes.append(problem)

    def _loss_of(self, parameters: Parameters) -> Lost:
        """What the held-out samples lose."""
        return self._judge.of_parameters(parameters)

    def _samples(self, feeds: Iterable[Feed]) -> Samples | None:
        if not self.rows_first:
            return None
        feeds = list(feeds)
        return stacked(feeds, outputs_of(self.model, feeds, self.folder), rows=self._rows)

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
