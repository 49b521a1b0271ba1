"""The ways in which an application's model is quantized: onnxq, quantize_static twice, and NNCF with its own control.

quantize_static gets what its documentation recommends: the model goes through quant_pre_process first, and one whose
opset is too old for per-channel weights is raised to 13 by onnx's version converter. What fails is left out and noted.
NNCF gets the same model; every other calibration feed validates, and what it may lose there, of labels or of cosine,
is half a point.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import onnxruntime
from harness import child
from onnx import version_converter
from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from peers import Reader

from apps.base import Application, Feed

PER_CHANNEL_OPSET = 13
LINEAR = ("Conv", "MatMul", "Gemm")
CONTROLLED = Path(__file__).parent.parent / "rival" / "controlled.py"
MAX_DROP, NNCF_SECONDS = 0.005, 3600
NO_ADJUSTMENT = "QDQDisableWeightAdjustForInt32Bias"


@dataclass(frozen=True)
class Variant:
    """`build(application, feeds, out)` writes the quantized model to `out` and returns notes; it may raise anything.

    `stamp` is empty for what must be built anew in every run, else it says which version built a file that may be kept.
    """

    name: str
    title: str
    build: Callable[[Application, list[Feed], Path], list[str]]
    stamp: str = ""


def brief(error: BaseException) -> str:
    """The type and the first line of an error, at most 200 characters."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:200]


def with_onnxq(app: Application, feeds: list[Feed], out: Path) -> list[str]:
    """onnxq with its defaults."""
    import onnxq

    result = onnxq.quantize(app.model_path(), feeds, config=onnxq.Config(latency_seconds=2.0))
    result.save(out)
    return [*result.report.notes, *result.report.warnings]


def prepared(model: Path, folder: Path) -> tuple[Path, list[str]]:
    """The model made ready for quantize_static, and what did not work on the way."""
    notes = []
    loaded = onnx.load(model)
    opset = next(entry.version for entry in loaded.opset_import if entry.domain == "")
    if opset < PER_CHANNEL_OPSET:
        raised = folder / f"raised-{model.name}"
        try:
            onnx.save(version_converter.convert_version(loaded, PER_CHANNEL_OPSET), raised)
            model = raised
            notes.append(f"opset {opset} raised to {PER_CHANNEL_OPSET} first")
        except Exception as error:
            notes.append(f"opset {opset} could not be raised: {brief(error)}")
    ready = folder / f"ready-{model.name}"
    for skip in (False, True):
        try:
            quant_pre_process(str(model), str(ready), skip_symbolic_shape=skip)
            return ready, notes
        except Exception as error:
            notes.append(f"quant_pre_process{' without symbolic shapes' if skip else ''} failed: {brief(error)}")
    return model, notes


def with_quantize_static(app: Application, feeds: list[Feed], out: Path, *, operators: tuple[str, ...]) -> list[str]:
    """quantize_static, min-max, per channel, u8 activations and s8 weights; `operators` empty: its own choice.

    Its adjustment of weight scales to the bias (on by default) raises on some models; it is then tried without.
    """
    logging.getLogger().setLevel(logging.ERROR)
    temporary = TemporaryDirectory(prefix="onnxq-peer-")
    with warnings.catch_warnings(), redirect_stdout(StringIO()), temporary as folder:
        warnings.simplefilter("ignore")
        ready, notes = prepared(app.model_path(), Path(folder))
        run = partial(
            quantize_static,
            str(ready),
            str(out),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(operators) or None,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
        )
        try:
            run(calibration_data_reader=Reader(feeds))
        except Exception as error:
            notes.append(f"with {NO_ADJUSTMENT}, as without it: {brief(error)}")
            run(calibration_data_reader=Reader(feeds), extra_options={NO_ADJUSTMENT: True})
    return notes


def default_placement(app: Application, feeds: list[Feed], out: Path) -> list[str]:
    """quantize_static on every operator it knows."""
    return with_quantize_static(app, feeds, out, operators=())


def linear_placement(app: Application, feeds: list[Feed], out: Path) -> list[str]:
    """quantize_static on Conv, MatMul and Gemm alone."""
    return with_quantize_static(app, feeds, out, operators=LINEAR)


def with_nncf(app: Application, feeds: list[Feed], out: Path) -> list[str]:
    """NNCF's quantize_with_accuracy_control, in an environment of its own."""
    from rivals import install

    with TemporaryDirectory(prefix="onnxq-peer-") as folder:
        ready, notes = prepared(app.model_path(), Path(folder))
        arrays = Path(folder, "feeds.npz")
        np.savez(arrays, **{f"{i}/{name}": value for i, feed in enumerate(feeds) for name, value in feed.items()})
        command = [install("nncf"), CONTROLLED, ready, arrays, out, app.kept_by, MAX_DROP]
        child([str(part) for part in command], timeout=NNCF_SECONDS)
    return notes


VARIANTS = (
    Variant("onnxq", "onnxq", with_onnxq),
    Variant("ort_default", "quantize_static", default_placement, onnxruntime.__version__),
    Variant("ort_linear", "quantize_static, Conv + MatMul + Gemm", linear_placement, onnxruntime.__version__),
    Variant("nncf", "NNCF, accuracy control", with_nncf, "3.4.0"),
)
