"""What each kind of CPU wants: integer types for weights and activations. Frozen tables, looked up by name.

Sources: onnxruntime's dispatch tables (mlas/lib/platform.cpp) and its documentation on quantization data types.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from onnxq.config import Config
from onnxq.errors import ConfigError
from onnxq.kernels import cpu
from onnxq.numerics import INT7_NARROW, INT8_NARROW, UINT8, QType


@dataclass(frozen=True)
class Target:
    """A kind of CPU: the integer types that its kernels compute fast and exactly.

    ``direct_convolution``: whether convolutions of few channels have a kernel that does without copying patches.
    """

    name: str
    activations: QType
    weights: QType
    why: str
    direct_convolution: bool = True


TARGETS: dict[str, Target] = {
    t.name: t
    for t in (
        Target("x86-vnni", UINT8, INT8_NARROW, "AVX512-VNNI and AVX-VNNI multiply u8 by s8 without saturation"),
        Target("x86-amx", UINT8, INT8_NARROW, "as x86-vnni; matrix products on tiles outrun direct convolutions"),
        Target(
            "x86-avx2",
            UINT8,
            INT7_NARROW,
            "vpmaddubsw adds two u8*s8 products in 16 bits: with 7-bit weights the sum cannot saturate",
        ),
        Target(
            "arm64",
            UINT8,
            INT8_NARROW,
            "u8 activations with s8 weights run on NEON, dot-product and i8mm kernels",
            direct_convolution=False,
        ),
    )
}


def resolve_target(name: str) -> Target:
    """The target called ``name``; ``auto`` is the CPU this runs on. Raises ``ConfigError`` for an unknown name."""
    key = _this_cpu() if name == "auto" else name
    if key not in TARGETS:
        raise ConfigError(f"unknown target '{name}': choose auto, {', '.join(TARGETS)}")
    return TARGETS[key]


def target_of(config: Config) -> Target:
    """The target of ``config``, with the activations that it wants. Raises ``ConfigError`` for an unknown name."""
    target = resolve_target(config.target)
    bits = config.activation_bits
    return target if bits == target.activations.bits else replace(target, activations=QType(bits, signed=False))


def _this_cpu() -> str:
    if cpu.is_arm64():
        return "arm64"
    found = cpu.features()
    if "amx_int8" in found:
        return "x86-amx"
    # Without a way to ask, the types that are right on every x86 CPU.
    return "x86-vnni" if found & {"avx512_vnni", "avx_vnni"} else "x86-avx2"
