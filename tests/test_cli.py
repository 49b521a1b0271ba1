"""The command line as its users meet it: what is written, what is said, and the exit codes."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import toys
from typer.testing import CliRunner, Result
from zoo import transformer_mlp

from onnxq.cli import app
from onnxq.measure.latency import Latency, LatencyReport

# Its toys are too small for integers to pay, and no option of the command line says "all the same".
pytestmark = pytest.mark.no_costs

# --help shows before anything is computed: this is processor time, which other work on the machine does not change.
HELP_SECONDS = 0.5


def call(*arguments: object) -> Result:
    return CliRunner(env={"COLUMNS": "80"}).invoke(app, [str(a) for a in arguments])


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return toys.write(toys.classifier(), tmp_path / "net.onnx")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.npz"
    np.savez(path, image=toys.images(), labels=np.zeros(32, np.int64))
    return path


@pytest.fixture
def quantized(model: Path, data: Path) -> Path:
    assert call("quantize", model, "-c", data, "--latency", 0, "-q").exit_code == 0
    return model.with_name("net.int8.onnx")


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    heavy = "('numpy', 'onnx', 'onnx_ir', 'onnxruntime', 'PIL')"
    code = (
        "import sys; sys.argv = ['onnxq', '--help']\nfrom onnxq.cli import main\n"
        f"assert main() == 0; assert not [m for m in {heavy} if m in sys.modules]"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert "quantize" in done.stdout
    assert after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime < HELP_SECONDS


def test_every_command_has_help_with_examples() -> None:
    for command in ("quantize", "benchmark", "evaluate", "inspect", "run"):
        done = call(command, "--help")
        assert done.exit_code == 0
        assert f"onnxq {command}" in done.stdout.partition("Examples:")[2]


def test_help_names_only_what_exists() -> None:
    from onnxq.kernels.targets import TARGETS
    from onnxq.ranges.registry import find_method

    text = " ".join(call("quantize", "--help").stdout.replace("│", " ").split())
    for target in TARGETS:
        assert target in text
    for method in ("mse", "minmax", "percentile:99.99", "entropy"):
        assert method in text
        assert find_method(method)


def test_version() -> None:
    assert call("--version").stdout.startswith("onnxq ")


def test_quantize_writes_beside_the_input_and_reports(model: Path, data: Path) -> None:
    before = model.read_bytes()
    done = call("quantize", model, "--calib", data, "--latency", 0)
    assert done.exit_code == 0, done.output
    assert "net.int8.onnx" in done.stdout
    assert "file size MB" in done.stdout
    assert max(map(len, done.stdout.splitlines()[:8])) <= 80
    assert model.read_bytes() == before
    onnx.checker.check_model(onnx.load(model.with_name("net.int8.onnx")))


def test_quantize_measures_latency_by_default(model: Path, data: Path) -> None:
    done = call("quantize", model, "--calib", data, "--latency", 0.05)
    assert done.exit_code in (0, 3)  # a toy may well be slower than float
    assert "latency ms, 1 thread" in done.stdout


def test_quantize_json_is_all_there_is_on_stdout(model: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "q.onnx"
    done = call("quantize", model, "-c", data, "-o", out, "--latency", 0, "--json")
    report = json.loads(done.stdout)
    assert done.exit_code == 0
    assert report["output"] == str(out)
    assert report["result"]["file_bytes"] == out.stat().st_size
    assert report["source"]["name"] == "net.onnx"
    assert report["shortcomings"] == []


def test_quantize_quiet_says_nothing(model: Path, data: Path) -> None:
    assert call("quantize", model, "-c", data, "--latency", 0, "--quiet").output == ""


def test_quantize_takes_data_that_lies_beside_the_model(model: Path, data: Path) -> None:
    data.rename(model.with_name("net.calib.npz"))
    done = call("quantize", model, "--latency", 0)
    assert done.exit_code == 0
    assert "net.calib.npz" in done.stderr


def test_quantize_without_data_says_so_and_how_to_go_on(model: Path) -> None:
    done = call("quantize", model, "--latency", 0)
    assert done.exit_code == 0, done.output
    assert "no real data" in done.stdout
    assert "image: float32[N, 3, 8, 8]" in done.stdout
    assert "np.savez(" in done.stdout
    assert f"onnxq quantize {model} --calib" in done.stdout


def test_advice_for_names_that_python_cannot_write(tmp_path: Path) -> None:
    from onnxq.cli.quantizing import advice_without_data

    awkward = toys.adder()
    awkward.graph.input[0].name = awkward.graph.node[0].input[0] = "in.1"
    path = toys.write(awkward, tmp_path / "m.onnx")
    text = advice_without_data(path, tmp_path / "m.calib.npz", None)
    (line,) = (text for text in text.splitlines() if "savez" in text)
    ones = np.ones((8, 4), np.float32)
    exec(line.strip(), {"np": np, "input_0": ones, "b": ones})
    with np.load(tmp_path / "m.calib.npz") as saved:
        assert set(saved.files) == {"in.1", "b"}


def test_random_data_is_used_only_by_name_and_warned_of(model: Path) -> None:
    done = call("quantize", model, "-c", "random", "--latency", 0)
    assert done.exit_code in (0, 3)
    assert "random" in done.stdout.partition("Warning")[2]


def test_below_min_sqnr_is_exit_3_with_the_file_written(model: Path, data: Path) -> None:
    done = call("quantize", model, "-c", data, "--latency", 0, "--min-sqnr", 200)
    assert done.exit_code == 3
    *stages, last = done.stderr.splitlines()
    assert all(re.fullmatch(r"[A-Z][a-z ]+: \d+\.\d s", line) for line in stages)
    assert "--min-sqnr 200" in last
    assert str(model.with_name("net.int8.onnx")) in last
    assert model.with_name("net.int8.onnx").exists()


def test_an_output_is_judged_as_the_user_says(model: Path, data: Path, tmp_path: Path) -> None:
    done = call("quantize", model, "-c", data, "--latency", 0, "--judge", "logits=embedding", "--json")
    (output,) = json.loads(done.stdout)["comparison"]["outputs"]
    assert (output["kind"], output["kind_reason"]) == ("embedding", "set by --judge")
    usual = json.loads(call("quantize", model, "-c", data, "--latency", 0, "--json").stdout)["comparison"]["outputs"][0]
    assert usual["kind"] == "classes"
    assert usual["share"]["rows"] == usual["rows"] > 0
    assert 0 < usual["share"]["lower"] <= usual["agreement"] == usual["share"]["value"]
    for words, text in ((("nothing=map",), "give one of logits"), (("logits=maps",), "give one of classes")):
        refused = call("quantize", model, "-c", data, "--latency", 0, "--judge", *words, "-o", tmp_path / "no.onnx")
        assert refused.exit_code == 2
        assert text in " ".join(refused.output.split())
        assert not (tmp_path / "no.onnx").exists()


def test_exclude_and_config_reach_the_plan(model: Path, data: Path, tmp_path: Path) -> None:
    toml = tmp_path / "onnxq.toml"
    toml.write_text('activation_range = "minmax"\n[[rules]]\nmatch = "nosuch*"\n')
    done = call("quantize", model, "-c", data, "--latency", 0, "--config", toml, "--exclude", "fc", "--json")
    report = json.loads(done.stdout)
    assert [node["node"] for node in report["left_float"]] == ["fc"]
    assert any("nosuch*" in note for note in report["notes"])
    assert '"minmax"' in report["provenance"]["config"]


def test_no_overwrite_keeps_what_is_there(quantized: Path, model: Path, data: Path) -> None:
    before = quantized.read_bytes()
    done = call("quantize", model, "-c", data, "--no-overwrite", "--range", "minmax")
    assert done.exit_code == 2
    assert quantized.read_bytes() == before


def test_same_seed_same_file(model: Path, data: Path, tmp_path: Path) -> None:
    outs = [tmp_path / "a.onnx", tmp_path / "b.onnx"]
    for out in outs:
        call("quantize", model, "-c", data, "-o", out, "--latency", 0, "-q", "--seed", 3)
    assert outs[0].read_bytes() == outs[1].read_bytes()


def test_benchmark_makes_its_own_inputs(model: Path, quantized: Path) -> None:
    done = call("benchmark", model, quantized, "--seconds", 0.05)
    assert done.exit_code == 0, done.output
    assert "net.int8.onnx" in done.stdout
    rows = json.loads(call("benchmark", model, "-t", 1, "-t", 2, "--seconds", 0.05, "--json").stdout)["rows"]
    assert [row["threads"] for row in rows] == [1, 2]


def test_evaluate_tells_outputs_labels_and_layers(model: Path, quantized: Path, data: Path) -> None:
    done = call("evaluate", model, quantized, "--data", data, "--labels", "labels")
    assert done.exit_code == 0, done.output
    for text in ("top-1 %", "logits", "local dB", "conv"):
        assert text in done.stdout
    short = call("evaluate", model, quantized, "--data", data, "--no-layers", "--samples", 8, "--json")
    assert json.loads(short.stdout)["layers"] == []


def test_run_writes_outputs_joined_along_the_samples(model: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.npz"
    done = call("run", model, "-d", data, "-o", out)
    assert done.exit_code == 0, done.output
    assert "logits: float32[32, 6]" in done.stdout
    with np.load(out) as saved:
        assert saved["logits"].shape == (32, toys.CLASSES)


def test_inspect_prints_and_is_json(model: Path, quantized: Path) -> None:
    done = call("inspect", model)
    assert done.exit_code == 0, done.output
    assert "image: float32[batch, 3, 8, 8]" in done.stdout
    assert json.loads(call("inspect", quantized, "--json").stdout)["quantized_ops"]["QuantizeLinear"] > 0
    assert "run on integers" in call("inspect", quantized).stdout


def test_inspect_tells_node_by_node(model: Path, quantized: Path) -> None:
    beside = call("inspect", model, quantized)
    assert beside.exit_code == 0, beside.output
    for text in ("Time by node", "QLinearConv", "All kernels, quantized"):
        assert text in beside.stdout
    alone = call("inspect", model, "--nodes", "--json")
    assert {row["node"] for row in json.loads(alone.stdout)["node_table"]["rows"]} >= {"conv", "fc"}
    refused = call("inspect", quantized, "--nodes")
    assert refused.exit_code == 2
    assert "give the float model first" in refused.stderr


def test_tuned_choices_are_written_and_give_the_same_model(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing_is_faster(
        models: list[bytes], feeds: object, *, threads: tuple[int, ...], **_: object
    ) -> LatencyReport:
        return LatencyReport(tuple(Latency("", n, 9, *[1.0] * 7) for n in threads for _ in models), (), False, 0)

    monkeypatch.setattr("onnxq.search.tune.benchmark", nothing_is_faster)
    first, again, choices = tmp_path / "a.onnx", tmp_path / "b.onnx", tmp_path / "tuned.toml"
    common = ("quantize", model, "--calib", data, "--latency", 0, "--exclude", "fc", "--quiet")
    done = call(*common, "--tune", 0.5, "--save-config", choices, "-o", first)
    assert done.exit_code == 0, done.output
    assert 'placement = "all"' in choices.read_text()
    done = call("quantize", model, "--calib", data, "--latency", 0, "--config", choices, "-o", again, "--json")
    assert done.exit_code == 0, done.output
    assert [n["node"] for n in json.loads(done.stdout)["left_float"]] == ["fc"]
    ops = [sorted(n.op_type for n in onnx.load(path).graph.node) for path in (first, again)]
    assert ops[0] == ops[1]
    (tmp_path / "file").write_text("no folder")
    assert call(*common, "--save-config", tmp_path / "file" / "c.toml", "-o", first).exit_code == 2
    there = tmp_path / "new" / "folder" / "q.onnx"
    assert call(*common, "--save-config", there.with_suffix(".toml"), "-o", there).exit_code in (0, 3)
    assert there.exists()
    assert there.with_suffix(".toml").exists()


def test_standard_operators_on_request(tmp_path: Path) -> None:
    net, data, out = tmp_path / "net.onnx", tmp_path / "data.npz", tmp_path / "q.onnx"
    onnx.save(transformer_mlp(), net)
    np.savez(data, x=np.random.default_rng(0).standard_normal((32, 6, 16)).astype(np.float32))
    done = call("quantize", net, "--calib", data, "--latency", 0, "--operators", "standard", "-o", out, "-q")
    assert done.exit_code in (0, 3), done.output
    assert {n.domain for n in onnx.load(out).graph.node} == {""}


def script(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "import sys; from onnxq.cli import main; sys.exit(main())", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, check=False)


def test_usage_errors_are_one_line() -> None:
    for arguments in (("quantize",), ("quantize", "m.onnx", "--samples", "many"), ("nosuch",), ("inspect", "m", "--x")):
        done = script(*arguments)
        assert done.returncode == 2
        assert done.stderr.startswith("error: ")
        assert len(done.stderr.splitlines()) == 1


def test_no_arguments_show_the_help() -> None:
    done = script()
    assert done.returncode == 0
    assert "Commands" in done.stdout


def test_bad_input_is_one_line_in_a_real_process(tmp_path: Path) -> None:
    done = script("quantize", tmp_path / "missing.onnx")
    assert done.returncode == 2
    assert done.stdout == ""
    error, hint = done.stderr.splitlines()
    assert error.startswith("error: ")
    assert hint == "hint: check the path"
    assert "Traceback" in script("quantize", tmp_path / "missing.onnx", ONNXQ_TRACEBACK="1").stderr


def test_a_bug_is_one_line_and_exit_1(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("what a pity")

    monkeypatch.setattr("onnxq.analysis.inspection.inspect", broken)
    done = call("inspect", model)
    assert done.exit_code == 1
    assert len(done.stderr.splitlines()) == 1
    assert "ONNXQ_TRACEBACK=1" in done.stderr
    assert "what a pity" in done.stderr


def test_interrupted_is_130(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("onnxq.analysis.inspection.inspect", interrupted)
    done = call("inspect", model)
    assert done.exit_code == 130
    assert done.stderr == "error: interrupted\n"
