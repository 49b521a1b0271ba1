"""Choosing parameters leaves the process that asked for them as it was."""

from __future__ import annotations

from typing import Any

import pytest
from threadpoolctl import threadpool_info, threadpool_limits
from zoo import feeds, gemm, prepared

from onnxq.calibrate.runner import run_observers
from onnxq.config import Config
from onnxq.errors import ModelError, NumericsError
from onnxq.kernels.targets import TARGETS
from onnxq.parameters.choose import choose
from onnxq.plan import make_plan
from onnxq.weights import format as module


def threads() -> list[int]:
    return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]


@pytest.mark.parametrize("broken", [False, True])
def test_the_hosts_thread_limits_are_as_before(broken: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where choosing ends in an error; while it lasts there is one thread of BLAS for each of the pool."""
    model, during = prepared(gemm()), []
    config = Config(restore="none")
    plan = make_plan(model, config, TARGETS["x86-vnni"])
    seen = run_observers(model, [p.tensor for p in plan.points], feeds(gemm(), 4))
    real = module.fitted

    def watched(*given: Any, **how: Any) -> Any:
        during.append(threads())
        if broken:
            raise NumericsError("broken")
        return real(*given, **how)

    monkeypatch.setattr(module, "fitted", watched)
    with threadpool_limits(limits=2, user_api="blas"):
        before = threads()
        if broken:
            with pytest.raises(ModelError):
                choose(model, plan, seen, config)
        else:
            choose(model, plan, seen, config)
        assert threads() == before
    assert before
    assert all(count == 1 for found in during for count in found)
    assert during
