"""Every kind of bad input: one line that says what and what to do, exit code 2, nothing written, nothing lost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
import toys
from onnx import TensorProto, helper
from typer.testing import CliRunner

from onnxq.cli import app


@dataclass
class Place:
    """A folder with a good model and good data, which a case may spoil."""

    folder: Path

    @property
    def model(self) -> Path:
        return self.folder / "net.onnx"

    @property
    def data(self) -> Path:
        return self.folder / "data.npz"

    def files(self) -> dict[str, bytes]:
        return {str(p): p.read_bytes() for p in self.folder.rglob("*") if p.is_file()}


@pytest.fixture
def place(tmp_path: Path) -> Place:
    toys.write(toys.classifier(), tmp_path / "net.onnx")
    np.savez(tmp_path / "data.npz", image=toys.images(16))
    return Place(tmp_path)


def refused(place: Place, *arguments: object) -> str:
    """The message, hint included, of a command that must refuse, leaving every file as it was."""
    before = place.files()
    done = CliRunner().invoke(app, [str(a) for a in arguments])
    assert done.exit_code == 2, done.output
    assert done.stdout == ""
    line, *hint = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert len(hint) <= 1
    assert all(h.startswith("hint: ") for h in hint)
    assert "Traceback" not in line
    assert place.files() == before
    return "; ".join([line, *(h.removeprefix("hint: ") for h in hint)])


def not_onnx(place: Place) -> None:
    place.model.write_text("this is not a model\n" * 20)


def truncated(place: Place) -> None:
    place.model.write_bytes(place.model.read_bytes()[:-200])


def empty_file(place: Place) -> None:
    place.model.write_bytes(b"")


def missing(place: Place) -> None:
    place.model.unlink()


def nothing_to_quantize(place: Place) -> None:
    toys.write(toys.adder(), place.model)
    np.savez(place.data, a=np.ones((8, 4), np.float32), b=np.ones((8, 4), np.float32))


def already_quantized(place: Place) -> None:
    model = toys.classifier()
    model.graph.node.append(helper.make_node("DequantizeLinear", ["code", "step"], ["extra"]))
    model.graph.initializer.append(helper.make_tensor("code", TensorProto.INT8, [1], [3]))
    model.graph.initializer.append(helper.make_tensor("step", TensorProto.FLOAT, [], [0.5]))
    model.graph.output.append(helper.make_tensor_value_info("extra", TensorProto.FLOAT, [1]))
    toys.write(model, place.model)


def newer_opset(place: Place) -> None:
    model = toys.classifier()
    model.opset_import[0].version = onnx.defs.onnx_opset_version() + 1
    toys.write(model, place.model)


def missing_external_data(place: Place) -> None:
    onnx.save_model(toys.classifier(), place.model, save_as_external_data=True, location="w.bin", size_threshold=0)
    (place.folder / "w.bin").unlink()


MODELS: dict[Callable[[Place], None], str] = {
    not_onnx: "not an ONNX model",
    truncated: "truncated",
    empty_file: "not an ONNX model",
    missing: "does not exist",
    nothing_to_quantize: "nothing to quantize",
    already_quantized: "already quantized",
    newer_opset: "opset",
    missing_external_data: "w.bin",
}


@pytest.mark.parametrize(("spoil", "says"), MODELS.items(), ids=lambda v: getattr(v, "__name__", None))
def test_bad_model(place: Place, spoil: Callable[[Place], None], says: str) -> None:
    spoil(place)
    assert says in refused(place, "quantize", place.model, "--calib", place.data, "--latency", 0)


IMAGES = toys.images(16)
DATA: dict[str, tuple[dict[str, np.ndarray], str]] = {
    "wrong name": ({"picture": IMAGES, "other": IMAGES}, "image"),
    "wrong shape": ({"image": IMAGES[:, :, :4]}, "4"),
    "wrong rank": ({"image": IMAGES[0, 0]}, "image"),
    "wrong dtype": ({"image": np.full((16, 3, 8, 8), "x")}, "image"),
    "complex": ({"image": IMAGES.astype(np.complex64)}, "image"),
    "empty": ({"image": IMAGES[:0]}, "empty"),
    "no arrays": ({}, ""),
    "NaN": ({"image": np.where(np.arange(16)[:, None, None, None] == 3, np.nan, IMAGES)}, "NaN"),
    "infinity": ({"image": np.where(np.arange(16)[:, None, None, None] == 3, np.inf, IMAGES)}, "image"),
}


@pytest.mark.parametrize("case", DATA)
def test_bad_data(place: Place, case: str) -> None:
    arrays, says = DATA[case]
    np.savez(place.data, **arrays)
    assert says in refused(place, "quantize", place.model, "--calib", place.data, "--latency", 0)


OPTIONS: dict[str, tuple[list[str], str]] = {
    "range method": (["--range", "nosuch"], "nosuch"),
    "range role": (["--range", "biases=mse"], "biases"),
    "objective": (["--objective", "weights"], "objective is one of"),
    "equalize": (["--equalize", "yes"], "equalize is one of"),
    "restore": (["--restore", "everything"], "restore is one of"),
    "percentile": (["--range", "percentile:900"], "percentile"),
    "target": (["--target", "z80"], "z80"),
    "samples": (["--samples", "0"], "samples"),
    "missing config": (["--config", "nosuch.toml"], "nosuch.toml"),
    "image size": (["--image-size", "big"], "--image-size"),
    "scale": (["--scale", "1/0"], "--scale"),
    "mean": (["--mean", "a,b,c"], "--mean"),
    "resize": (["--resize", "stretch"], "stretch"),
    "dim": (["--dim", "seq"], "--dim"),
    "unknown dim": (["--dim", "seq=4"], "seq"),
    "batch size": (["--batch-size", "0"], "batch_size"),
    "image options and preprocessor": (["--crop", "8", "--preprocessor", "p.json"], "exclude"),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_bad_option(place: Place, case: str) -> None:
    options, says = OPTIONS[case]
    assert says in refused(place, "quantize", place.model, "--calib", place.data, "--latency", 0, *options)


@pytest.mark.parametrize(
    ("text", "says"), [("samples = [", "TOML"), ("sample = 3", "sample"), ('samples = "many"', "samples")]
)
def test_bad_config_file(place: Place, text: str, says: str) -> None:
    path = place.folder / "onnxq.toml"
    path.write_text(text)
    assert says in refused(place, "quantize", place.model, "-c", place.data, "--config", path)


def test_missing_data(place: Place) -> None:
    assert "nosuch.npz" in refused(place, "quantize", place.model, "-c", place.folder / "nosuch.npz")


def test_data_of_another_kind(place: Place) -> None:
    (place.folder / "data.csv").write_text("1,2\n")
    assert "data.csv" in refused(place, "quantize", place.model, "-c", place.folder / "data.csv")


@pytest.mark.parametrize("command", ["quantize", "run"])
def test_output_that_cannot_be_written(place: Place, command: str) -> None:
    data = ["--calib" if command == "quantize" else "--data", place.data]
    # Below a file, and onto a folder: these fail for the superuser too.
    for output in (place.model / "out", place.model / "nosuch" / "out", place.folder):
        assert "cannot write" in refused(place, command, place.model, *data, "-o", output)


@pytest.mark.parametrize("command", ["quantize", "run"])
def test_output_is_never_the_input(place: Place, command: str) -> None:
    data = ["--calib" if command == "quantize" else "--data", place.data]
    link = place.folder / "link.onnx"
    link.symlink_to(place.model)
    for output in (place.model, link):
        assert "input model" in refused(place, command, place.model, *data, "-o", output)


def test_benchmark_of_models_that_take_other_inputs(place: Place) -> None:
    other = toys.write(toys.adder(), place.folder / "adder.onnx")
    line = refused(place, "benchmark", place.model, other)
    assert "adder.onnx" in line
    assert "image" in line


def test_evaluate_of_models_with_other_outputs(place: Place) -> None:
    model = toys.classifier()
    model.graph.node[-1].output[0] = model.graph.output[0].name = "scores"
    other = toys.write(model, place.folder / "other.onnx")
    assert "logits" in refused(place, "evaluate", place.model, other, "-d", place.data)


def test_evaluate_without_such_labels(place: Place) -> None:
    assert "truth" in refused(place, "evaluate", place.model, place.model, "-d", place.data, "--labels", "truth")


@pytest.mark.parametrize("spoil", [not_onnx, truncated, missing, newer_opset, missing_external_data])
def test_inspect_of_a_bad_model(place: Place, spoil: Callable[[Place], None]) -> None:
    spoil(place)
    refused(place, "inspect", place.model)
