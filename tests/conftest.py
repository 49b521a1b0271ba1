"""Here so that pytest puts this folder on the path: the rooms' tests share the helpers that lie in it."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import pytest

from onnxq.plan import place as placing


@pytest.fixture(autouse=True)
def integers_everywhere(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """No cost tables for tests marked ``no_costs``: toy networks are too small for integers to pay in any of them.

    All other tests run as users do, with the tables that ship with the package, or say ``placement="all"`` themselves.
    """
    if "no_costs" in request.keywords:
        monkeypatch.setattr(placing, "cost_table", lambda target: None)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or leaves a tuning in the cache of whoever runs it."""
    monkeypatch.setenv("ONNXQ_CACHE", str(tmp_path / "cache"))


@pytest.fixture(autouse=True)
def own_numbers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module's ``RNG`` begins anew in every test: what a test draws does not hang on those that ran before it."""
    numbers = getattr(request.module, "RNG", None)
    if numbers is not None:
        monkeypatch.setattr(request.module, "RNG", deepcopy(numbers))
