"""The user's choices: defaults, checks, rules, TOML."""

from __future__ import annotations

import inspect
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxq.cli.choices import all_choices, planning_choices
from onnxq.config import (
    JUDGE_KINDS,
    OBJECTIVES,
    TARGET_NAMES,
    Config,
    Rule,
    choice_table,
    config_from,
    config_text,
    load_config,
)
from onnxq.config.choices import choice_of
from onnxq.errors import ConfigError
from onnxq.kernels.targets import TARGETS
from onnxq.measure.kinds import Kind
from onnxq.numerics import UINT4
from onnxq.ranges.layer import concrete


@pytest.mark.parametrize(
    ("choice", "complaint"),
    [
        ({"samples": 0}, "samples must be at least 1"),
        ({"held_out": 0.6}, "held_out is a share from 0 to 0.5"),
        ({"held_out": -0.1}, "held_out"),
        ({"min_agreement": 1.1}, "min_agreement is a share"),
        ({"min_agreement": -0.1}, "min_agreement"),
        ({"objective": "weights"}, "objective is one of auto, tensor, diagonal, output, not 'weights'"),
        ({"equalize": "yes"}, "equalize is one of auto, none, all, not 'yes'"),
        ({"restore": "bias"}, "restore is one of none, mean, gain, mean\\+gain, not 'bias'"),
        ({"seed": -1}, "seed must be at least 0"),
    ],
)
def test_values_that_make_no_sense_are_refused(choice: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        Config(**choice)


def test_the_ends_of_the_ranges_are_allowed() -> None:
    Config(samples=1, held_out=0.0, min_agreement=0.0)
    Config(held_out=0.5, min_agreement=1.0)


def test_rules_match_names_and_types_with_wildcards() -> None:
    assert Rule("conv*").matches("conv1", "Conv")
    assert Rule("Conv").matches("anything", "Conv")
    assert Rule("/layer.[12]/*").matches("/layer.2/mm", "MatMul")
    assert not Rule("conv").matches("conv1", "Conv")  # the whole name, and case counts
    assert not Rule("CONV1").matches("conv1", "Conv")


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"rule 'a': precision is one of auto, int8, int8-gemm, stored, float, not 'int4'"
    ):
        Rule("a", "int4")


def test_exclusions_come_before_other_rules() -> None:
    config = Config(rules=(Rule("a", "int8"),)).with_excluded(("a", "b*"))
    assert config.rules == (Rule("a"), Rule("b*"), Rule("a", "int8"))


@pytest.mark.parametrize(
    ("text", "weights", "activations"),
    [
        ("minmax", "minmax", "minmax"),
        ("weights=minmax", "minmax", "mse"),
        ("activations=entropy", "mse", "entropy"),
        ("weights=a,activations=b", "a", "b"),
        ("minmax,activations=b", "minmax", "b"),
    ],
)
def test_ranges_as_written_on_the_command_line(text: str, weights: str, activations: str) -> None:
    config = Config().with_range(text)
    assert (config.weight_range, config.activation_range) == (weights, activations)


def test_a_role_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ConfigError, match="not 'bias='"):
        Config().with_range("bias=minmax")


def test_toml_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "onnxq.toml"
    path.write_text(
        'weight_range = "minmax"\nsamples = 64\nheld_out = 0\nmin_sqnr = 20\nseed = 3\ntarget = "x86-avx2"\n'
        '[[rules]]\nmatch = "head*"\n[[rules]]\nmatch = "Conv"\nprecision = "int8"\n',
        encoding="utf-8",
    )
    config = load_config(path)
    rules = (Rule("head*"), Rule("Conv", "int8"))
    expected = Config(
        weight_range="minmax", samples=64, held_out=0.0, min_sqnr=20.0, seed=3, target="x86-avx2", rules=rules
    )
    assert config == expected
    assert isinstance(config.min_sqnr, float)


def test_an_empty_file_is_the_default(tmp_path: Path) -> None:
    (tmp_path / "empty.toml").write_text("", encoding="utf-8")
    assert load_config(str(tmp_path / "empty.toml")) == Config()


@pytest.mark.parametrize(
    ("table", "complaint"),
    [
        ({"sample": 3}, "here: unknown key 'sample'; known are weights"),
        ({"samples": 3.5}, "here: samples must be int"),
        ({"samples": True}, "here: samples must be int"),
        ({"samples": "3"}, "here: samples must be int"),
        ({"held_out": "little"}, "here: held_out must be float"),
        ({"held_out": True}, "here: held_out must be float"),
        ({"weight_range": 3}, "here: weight_range must be str"),
        ({"rules": "a"}, "here: rules is a list"),
        ({"rules": [{"precision": "float"}]}, "here: rules is a list"),
        ({"rules": [{"match": "a", "bits": 4}]}, "here: a rule has no key bits"),
        ({"rules": [{"match": "a", "precision": "int3"}]}, "precision is one of auto, int8"),
        ({"rules": [{"match": 3}]}, "here: 'match' of a rule must be str"),
        ({"rules": [{"match": "a", "precision": ["int8"]}]}, "here: 'precision' of a rule must be str"),
    ],
)
def test_mistakes_in_a_file_name_the_place(table: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        config_from(table, where="here")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read configuration .*none.toml"):
        load_config(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("samples = = 3", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"bad.toml is not valid TOML"):
        load_config(tmp_path / "bad.toml")
    (tmp_path / "latin.toml").write_bytes(b'target = "\xe4"')
    with pytest.raises(ConfigError, match=r"latin.toml is not valid TOML"):
        load_config(tmp_path / "latin.toml")


@pytest.mark.parametrize(
    ("choice", "complaint"),
    [
        ({"tune_seconds": -5}, "tune_seconds must be at least 0, not -5"),
        ({"latency_seconds": -1.0}, "latency_seconds must be at least 0"),
        ({"guard_sqnr": float("nan")}, "guard_sqnr must be a finite number, not nan"),
        ({"min_sqnr": float("inf")}, "min_sqnr must be a finite number"),
        ({"samples": 3.5}, r"samples must be int, not 3\.5"),
        ({"seed": True}, "seed must be int, not True"),
        ({"held_out": True}, "held_out must be float, not True"),
        ({"target": "z80"}, "target is one of auto, x86-vnni, .*, not 'z80'"),
        ({"resume": 1}, "resume must be bool, not 1"),
        ({"weights": "auto", "size_budget": 1.0}, "size_budget is a share between 0 and 1, not 1"),
        ({"accuracy_level": 3}, "accuracy_level is one of 0, 1, 4, not '3'"),
        ({"rules": "a"}, "rules is a tuple of Rule"),
    ],
)
def test_what_used_to_slip_through_is_refused(choice: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        Config(**choice)


def test_numbers_of_numpy_become_plain_ones() -> None:
    config = Config(samples=np.int64(5), held_out=np.float32(0.25), tune_seconds=3)
    assert (type(config.samples), type(config.held_out), type(config.tune_seconds)) == (int, float, float)
    assert config == Config(samples=5, held_out=0.25, tune_seconds=3.0)


def test_the_names_of_targets_are_those_that_there_are() -> None:
    assert ("auto", *TARGETS) == TARGET_NAMES


def test_the_objectives_are_those_that_weights_can_be_fitted_to() -> None:
    for objective in OBJECTIVES[1:]:
        assert concrete(objective, 8, UINT4) == objective


def test_every_choice_says_what_it_is() -> None:
    """In the reference, and on the command line where it has an option of its own."""
    table = choice_table()
    for entry in fields(Config):
        about = choice_of(entry)
        assert about.help, entry.name
        assert not about.help.endswith("."), entry.name
        assert f"| `{entry.name}` |" in table


def test_every_choice_has_an_option_or_is_set_by_another() -> None:
    without = {entry.name for entry in fields(Config) if not choice_of(entry).flag}
    assert without == {"rules", "weight_range", "activation_range", "judge"}  # --exclude, --range, --judge


def test_defaults_stand_in_one_place() -> None:
    """No default of a choice is written down a second time, as the default of a parameter of the command line."""
    for build in (all_choices, planning_choices):
        for parameter in inspect.signature(build).parameters.values():
            assert parameter.default in (None, False), parameter.name


def test_what_outputs_are_for_is_said_by_name(tmp_path: Path) -> None:
    config = Config(judge=(("y", "boxes"), ("a=b", "next-token")))
    path = tmp_path / "c.toml"
    path.write_text(config_text(config), encoding="utf-8")
    assert load_config(path) == config
    assert config_from({"judge": {"y": "boxes", "a=b": "next-token"}}) == config
    assert config.with_judged(("y=map", "z=ids")).judge == (("y", "map"), ("a=b", "next-token"), ("z", "ids"))
    assert Config().with_judged(("a=b=map",)).judge == (("a=b", "map"),)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"y": "classs"}, "there is no kind of outputs called 'classs'; give one of classes, labels"),
        ({"y": "detections"}, "no kind of outputs called 'detections'"),
        ({"y": 3}, "judge is a table of kinds"),
        ({"": "map"}, "judge is a table of kinds"),
        ("y=map", "judge is a table of kinds"),
        ([["y"]], "judge is a table of kinds"),
    ],
)
def test_a_kind_that_is_none_is_refused(value: object, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        config_from({"judge": value})


@pytest.mark.parametrize("word", ["y", "=map", "map"])
def test_a_word_that_names_no_kind_is_refused(word: str) -> None:
    with pytest.raises(ConfigError, match="names no kind"):
        Config().with_judged((word,))


def test_the_kinds_that_can_be_asked_for_are_those_that_are_measured() -> None:
    """Detections and picked rows are what lengths say, which is read off the graph."""
    assert set(JUDGE_KINDS) == {k.value for k in Kind} - {"detections", "picked"}
