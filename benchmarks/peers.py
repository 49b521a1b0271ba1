"""The tool that onnxq is measured against: onnxruntime's own `quantize_static`, used as its documentation says.

Model first through its `quant_pre_process` (shape inference and basic optimisation), then QDQ format, weights int8 per
channel, activations uint8, default placement. Ranges by min-max or by percentile; its entropy setting is left out, as
it gives the same file as min-max.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import version_converter
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType
from onnxruntime.quantization import quantize_static as _quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

PERCENTILES = (99.9, 99.99, 99.999)

Feed = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Static:
    """A file made by `quantize_static`, the seconds that took, pre-processing included, and how that went."""

    path: Path
    seconds: float
    preprocessing: str


class Reader(CalibrationDataReader):
    """Hands out `feeds` one by one, as `quantize_static` asks for them."""

    def __init__(self, feeds: Iterable[Feed]) -> None:
        self._feeds: Iterator[Feed] = iter(feeds)

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next feed, None after the last."""
        feed = next(self._feeds, None)
        return None if feed is None else dict(feed)


def quantize_static(model: Path, out: Path, feeds: Iterable[Feed], *, percentile: float | None = None) -> Static:
    """The INT8 version of `model` written to `out`, calibrated on `feeds`: by min-max if `percentile` is None.

    The percentile calibrator keeps every tensor of every sample until the end: give it few samples of large models.
    """
    onnxruntime.set_default_logger_severity(4)
    logging.getLogger().setLevel(logging.ERROR)
    start = time.perf_counter()
    quiet = contextlib.redirect_stdout(io.StringIO())  # the histogram calibrators print
    with tempfile.TemporaryDirectory(prefix="onnxq-peer-") as folder, quiet:
        prepared = Path(folder) / "prepared.onnx"
        preprocessing = _prepare(_raised(model, Path(folder)), prepared)
        _quantize_static(
            str(prepared),
            str(out),
            Reader(feeds),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax if percentile is None else CalibrationMethod.Percentile,
            extra_options={} if percentile is None else {"CalibPercentile": percentile},
        )
    return Static(out, time.perf_counter() - start, preprocessing)


def _raised(model: Path, folder: Path) -> Path:
    """`model` at an opset with per-channel DequantizeLinear, without which the tool writes files that do not load."""
    loaded = onnx.load(model)
    if all(entry.version >= 13 for entry in loaded.opset_import if entry.domain in ("", "ai.onnx")):
        return model
    raised = version_converter.convert_version(loaded, 13)
    raised.ir_version = 8
    onnx.save(raised, folder / "raised.onnx")
    return folder / "raised.onnx"


def _prepare(model: Path, prepared: Path) -> str:
    """Run the documented pre-processing; symbolic shape inference gives up on some models, the rest remains.

    Where it gives up it leaves the model in the working directory, so that is the folder of `prepared` meanwhile.
    """
    source, before = str(model.resolve()), Path.cwd()
    os.chdir(prepared.parent)
    try:
        quant_pre_process(source, str(prepared))
    except Exception as error:
        quant_pre_process(source, str(prepared), skip_symbolic_shape=True)
        return f"without symbolic shapes ({type(error).__name__})"
    finally:
        os.chdir(before)
    return "full"
