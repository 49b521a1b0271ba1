"""Which integer types each kind of CPU gets."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from archspec.cpu import detect

from onnxq.errors import ConfigError
from onnxq.kernels import cpu
from onnxq.kernels.targets import TARGETS, resolve_target
from onnxq.numerics import INT7_NARROW, INT8_NARROW, UINT8


@pytest.fixture(autouse=True)
def _forget_this_cpu() -> Iterator[None]:
    cpu.features.cache_clear()
    yield
    cpu.features.cache_clear()


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
    with pytest.raises(ConfigError, match=f"unknown target '{name}'; choose auto, x86-vnni, x86-amx, x86-avx2, arm64"):
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
    monkeypatch.setattr(detect, "detected_info", lambda: SimpleNamespace(features=set(flags.split())))
    assert resolve_target("auto").name == expected


def test_auto_where_the_system_does_not_tell_takes_what_is_right_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> SimpleNamespace:
        raise FileNotFoundError

    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(detect, "detected_info", missing)
    assert resolve_target("auto").name == "x86-avx2"


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="asks Linux")
def test_instructions_are_those_that_linux_names() -> None:
    named = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    for name in ("avx2", "avx512_vnni", "avx_vnni", "amx_int8"):
        assert (name in cpu.features()) == (name in named), name
    assert cpu.identity() == cpu.identity()
