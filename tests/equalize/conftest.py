"""Tests here draw the same numbers whichever ran before."""

from __future__ import annotations

import pytest
from equalizing import reseed


@pytest.fixture(autouse=True)
def the_same_numbers() -> None:
    reseed()
