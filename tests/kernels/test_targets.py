"""Which integer types each kind of CPU gets."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from pathlib import Path

import pytest

from onnxq.errors import ConfigError
from onnxq.kernels import targets
from onnxq.kernels.targets import TARGETS, resolve_target
from onnxq.numerics import INT7_NARROW, INT8_NARROW, UINT8


@pytest.fixture(autouse=True)
def _forget_this_cpu() -> Iterator[None]:
    targets._this_cpu.cache_clear()
    yield
    targets._this_cpu.cache_clear()


def test_the_table() -> None:
    assert {t.name: (t.activations, t.weights) for t in TARGETS.values()} == {
        "x86-vnni": (UINT8, INT8_NARROW),
        "x86-amx": (UINT8, INT8_NARROW),
        "x86-avx2": (UINT8, INT7_NARROW),
        "arm64": (UINT8, INT8_NARROW),
    }
    assert all(resolve_target(name).name == name for name in TARGETS)


@pytest.mark.parametrize("name", ["x86", "", "AUTO", "cuda"])
def test_an_unknown_target_is_refused_with_the_choices(name: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown target '{name}': choose auto, x86-vnni, x86-amx, x86-avx2, arm64"):
        resolve_target(name)


@pytest.mark.parametrize(
    ("machine", "flags", "expected"),
    [
        ("aarch64", "", "arm64"),
        ("ARM64", "", "arm64"),
        ("x86_64", "sse avx2 avx512_vnni", "x86-vnni"),
        ("x86_64", "sse avx_vnni", "x86-vnni"),
        ("x86_64", "avx512_vnni amx_int8", "x86-amx"),
        ("x86_64", "sse avx2 avx512bw", "x86-avx2"),
    ],
)
def test_auto_looks_at_the_cpu(machine: str, flags: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: f"processor : 0\nflags : {flags}\n")
    assert resolve_target("auto").name == expected


def test_auto_without_cpuinfo_takes_what_is_right_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(Path, "read_text", missing)
    assert resolve_target("auto").name == "x86-avx2"
