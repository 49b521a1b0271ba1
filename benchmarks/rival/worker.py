"""Child process, in the environment of one tool: quantize a model once, as that tool's documentation says.

    python worker.py TOOL MODEL CALIBRATION.npz OUT

The last line printed is JSON: the seconds of the tool itself, from the file of the model to that of the result, and the
peak memory of the process. Runs in environments that know nothing of onnxq and of the other benchmarks.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]


def feeds(arrays: Arrays) -> Iterator[Arrays]:
    """One feed for each sample."""
    for i in range(len(next(iter(arrays.values())))):
        yield {name: array[i : i + 1] for name, array in arrays.items()}


class Reader:
    """What tools in the manner of onnxruntime's ask for samples by."""

    def __init__(self, arrays: Arrays) -> None:
        self._arrays = arrays
        self.rewind()

    def rewind(self) -> None:
        self._feeds = feeds(self._arrays)

    def get_next(self) -> Arrays | None:
        return next(self._feeds, None)


def onnxq(model: Path, arrays: Arrays, out: Path) -> None:
    """Defaults, with all samples; verifying and timing the result included."""
    import onnxq

    onnxq.quantize(model, arrays, config=onnxq.Config(samples=len(next(iter(arrays.values()))))).save(out)


def quantize_static(model: Path, arrays: Arrays, out: Path) -> None:
    """onnxruntime's own, with min-max; see ``peers``."""
    sys.path.insert(0, str(Path(__file__).parent.parent))
    import peers

    peers.quantize_static(model, out, feeds(arrays))


def nncf(model: Path, arrays: Arrays, out: Path) -> None:
    """Defaults: mixed preset, statistics of 300 samples."""
    import nncf
    import onnx

    samples = list(feeds(arrays))
    made = nncf.quantize(onnx.load(model), nncf.Dataset(samples), subset_size=len(samples))
    onnx.save(made, out)


def neural_compressor(model: Path, arrays: Arrays, out: Path) -> None:
    """Defaults (operators of onnxruntime's own format, per tensor), with all samples."""
    from onnx_neural_compressor import data_reader
    from onnx_neural_compressor.quantization import config, quantize

    class Samples(Reader, data_reader.CalibrationDataReader):  # type: ignore[misc]
        pass

    count = len(next(iter(arrays.values())))
    choices = config.StaticQuantConfig(calibration_data_reader=Samples(arrays), calibration_sampling_size=count)
    quantize(str(model), str(out), choices)


def quark(model: Path, arrays: Arrays, out: Path) -> None:
    """Its configuration for CPUs: uint8 activations, int8 weights."""
    from onnxruntime.quantization import CalibrationDataReader
    from quark.onnx import ModelQuantizer
    from quark.onnx.quantization.config import Config, get_default_config

    class Samples(Reader, CalibrationDataReader):  # type: ignore[misc]
        pass

    quantizer = ModelQuantizer(Config(global_quant_config=get_default_config("U8S8_AAWS")))
    quantizer.quantize_model(str(model), str(out), Samples(arrays))


def modelopt(model: Path, arrays: Arrays, out: Path) -> None:
    """Defaults (entropy), calibrated on the CPU."""
    from modelopt.onnx.quantization import quantize

    quantize(str(model), calibration_data=arrays, calibration_eps=["cpu"], output_path=str(out))


def aimet(model: Path, arrays: Arrays, out: Path) -> None:
    """Defaults; written as QuantizeLinear and DequantizeLinear with integer constants."""
    import onnx
    from aimet_onnx import QuantizationSimModel
    from aimet_onnx.utils import duplicate_shared_initializers

    loaded = onnx.load(model)
    duplicate_shared_initializers(loaded.graph)  # it asks for that where weights are shared
    simulated = QuantizationSimModel(loaded, providers=["CPUExecutionProvider"])
    simulated.compute_encodings(list(feeds(arrays)))
    onnx.save(simulated.to_onnx_qdq(prequantize_constants=True), out)


def olive(model: Path, arrays: Arrays, out: Path) -> None:
    """Its pass for static quantization with defaults."""
    from olive.data.config import DataComponentConfig, DataConfig
    from olive.data.registry import Registry
    from olive.model import ONNXModelHandler
    from olive.passes.olive_pass import create_pass_from_dict
    from olive.passes.onnx.quantization import OnnxStaticQuantization

    @Registry.register_dataloader()
    def one_by_one(dataset: Any, **_: Any) -> list[tuple[Arrays, int]]:
        return [(feed, 0) for feed in feeds(arrays)]

    @Registry.register_dataset()
    def nothing(**_: Any) -> list[int]:
        return [0]

    data = DataConfig(
        name="calibration",
        load_dataset_config=DataComponentConfig(type="nothing"),
        dataloader_config=DataComponentConfig(type="one_by_one"),
    )
    step = create_pass_from_dict(OnnxStaticQuantization, {"data_config": data}, disable_search=True)
    made = step.run(ONNXModelHandler(str(model)), str(out.with_suffix("")))
    Path(made.model_path).replace(out)


TOOLS: dict[str, Callable[[Path, Arrays, Path], None]] = {
    "onnxq": onnxq,
    "quantize_static": quantize_static,
    "nncf": nncf,
    "neural-compressor": neural_compressor,
    "quark": quark,
    "modelopt": modelopt,
    "aimet": aimet,
    "olive": olive,
}


def peak_mb() -> float:
    """The most resident memory that this process has held."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024 / 1e6


def main(tool: str, model: str, calibration: str, out: str) -> None:
    with np.load(calibration) as archive:
        arrays = {name: archive[name] for name in archive.files}
    begun = time.perf_counter()
    TOOLS[tool](Path(model), arrays, Path(out))
    found: dict[str, Any] = {"seconds": time.perf_counter() - begun, "peak_mb": peak_mb()}
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
