"""How readers of one constant come to terms: what the file holds, and what each of them reads of that."""

from __future__ import annotations

import numpy as np
import pytest
from sharing import autoencoder, chain_of_one, language_model, stack_read_twice, table_in_float
from zoo import Net, prepared

from onnxq.config import Config, Rule, preset
from onnxq.kernels.targets import USUAL
from onnxq.numerics import PerAxis, PerBlock
from onnxq.plan import KeptFloat, Plan, ReasonCode, Storage, Weight, make_plan


def plan_of(proto: object, config: Config, **how: object) -> Plan:
    return make_plan(prepared(proto), config, USUAL, **how)  # type: ignore[arg-type]


def of(plan: Plan, tensor: str) -> dict[str, Weight]:
    return {w.node: w for w in plan.weights if w.tensor == tensor}


def test_a_head_and_a_lookup_read_codes_with_a_scale_for_each_row() -> None:
    found = of(plan_of(language_model()[0], Config()), "table")
    assert {name: w.storage for name, w in found.items()} == {"head": Storage.FUSED, "embed": Storage.GATHERED}
    assert {w.granularity for w in found.values()} == {PerAxis(0)}
    assert {name: w.turned for name, w in found.items()} == {"head": True, "embed": False}
    assert not any(w.at_load for w in found.values())


@pytest.mark.parametrize(
    ("rules", "stored"),
    [
        ((Rule("head", weights="int4"), Rule("embed", weights="int8")), "int8"),
        ((Rule("head", weights="int8"), Rule("embed", weights="int4")), "int8"),
        ((Rule("head", weights="int4"), Rule("embed", weights="codebook3")), "int4"),
        ((Rule("head", weights="int4:64"), Rule("embed", weights="int4")), "int4:64"),
    ],
)
def test_of_two_formats_the_one_of_more_bits_is_stored(rules: tuple[Rule, ...], stored: str) -> None:
    found = of(plan_of(language_model()[0], Config(rules=rules)), "table")
    assert {str(w.stored) for w in found.values()} == {stored}


def test_blocks_of_a_kernel_are_read_by_a_lookup_too() -> None:
    config = Config(weights="int4:32", first_last="int4:32", activations="none")
    found = of(plan_of(language_model()[0], config), "table")
    assert {name: w.storage for name, w in found.items()} == {"head": Storage.BLOCKS, "embed": Storage.GATHERED}
    assert {w.granularity for w in found.values()} == {PerBlock(1, 32)}
    assert len({w.stored for w in found.values()}) == 1


def test_where_a_lookup_wants_a_byte_the_kernel_of_blocks_makes_room() -> None:
    found = of(plan_of(language_model()[0], preset("w4")), "table")
    assert {name: w.storage for name, w in found.items()} == {"head": Storage.DYNAMIC, "embed": Storage.GATHERED}
    assert {str(w.stored) for w in found.values()} == {"int8"}


@pytest.mark.parametrize("config", [Config(), Config(weights="int4:32", activations="none", first_last="int4:32")])
def test_beside_floats_products_make_their_codes_at_load(config: Config) -> None:
    rules = (Rule("embed", "float"),)
    plan = plan_of(language_model()[0], Config(**{**vars(config), "rules": rules}))
    (head,) = of(plan, "table").values()
    assert (head.node, head.at_load, str(head.stored), head.granularity) == ("head", True, "int8", PerAxis(0))
    assert head.storage is (Storage.FUSED if config.activations == "uint8" else Storage.DYNAMIC)


def test_beside_floats_nothing_is_stored_that_does_not_compute() -> None:
    plan = plan_of(table_in_float()[0], Config())
    assert not of(plan, "table")
    (left,) = [s for s in plan.skipped if s.node == "embed"]
    assert left.code is ReasonCode.SHARED_FLOATS
    assert "gated" in left.reason


def test_excluding_a_product_keeps_the_table_float() -> None:
    plan = plan_of(language_model()[0], Config(rules=(Rule("MatMul", "float"),)))
    assert not plan.weights
    assert not plan.empty
    assert [s.node for s in plan.skipped if s.code is ReasonCode.SHARED_FLOATS] == ["embed"]


@pytest.mark.parametrize("gemm", [False, True])
def test_a_product_with_the_transpose_makes_its_codes_of_the_others(gemm: bool) -> None:
    found = of(plan_of(autoencoder(gemm=gemm)[0], Config()), "w")
    assert {name: w.at_load for name, w in found.items()} == {"into": False, "back": True}
    assert {name: w.granularity for name, w in found.items()} == {"into": PerAxis(1), "back": PerAxis(0)}


def test_a_layer_that_fell_back_reads_the_codes_of_the_other() -> None:
    back = {"back": KeptFloat.of(ReasonCode.ACCURACY, Storage.PACKED)}
    found = of(plan_of(autoencoder()[0], Config(), keep_float=back), "w")
    assert {name: w.storage for name, w in found.items()} == {"into": Storage.INTEGER, "back": Storage.PACKED}
    assert {w.granularity for w in found.values()} == {PerAxis(1)}


def test_the_ends_of_a_chain_decide_for_all_that_read_their_weight() -> None:
    plan = plan_of(chain_of_one()[0], Config(weights="int4"))
    assert {str(w.stored) for w in plan.weights} == {"int8"}


def test_stacks_have_a_scale_for_each_matrix_and_channel() -> None:
    plan = plan_of(stack_read_twice()[0], preset("w4"))
    found = of(plan, "stack")
    assert {(w.storage, w.granularity, str(w.stored)) for w in found.values()} == {
        (Storage.PACKED, PerBlock(1, 48), "int8")  # the last layer reads it too
    }
    assert {name: w.turned for name, w in found.items()} == {"there": False, "back": True}
    reasons = {s.node: s.reason for s in plan.skipped}
    assert "rank 3" in reasons["there"]


def test_matrices_with_few_inputs_share_their_scales() -> None:
    n = Net(1)
    n("MatMul", "x", n.weight("w", 64, 4, 32, fan=4), name="few", out="y")
    plan = plan_of(n.model({"x": [64, 8, 4]}, {"y": [64, 8, 32]}), Config())
    assert [w.granularity for w in plan.weights] == [PerAxis(2)]


def test_one_reader_changes_nothing() -> None:
    n = Net(2)
    n.linear("x", 64, 64, name="only", out="y")
    (weight,) = plan_of(n.model({"x": ["n", 64]}, {"y": ["n", 64]}), Config()).weights
    assert (weight.granularity, weight.turned, weight.at_load) == (PerAxis(1), False, False)
    assert np.dtype(weight.qtype.storage) == np.int8
