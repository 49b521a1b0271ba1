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
    """A kind of CPU: the integer types that its kernels compute fast and exactly, and the sizes that they want.

    The defaults were measured on x86; where nothing else was measured they hold for every target.

    | field                    | meaning                                                                           |
    |--------------------------|-----------------------------------------------------------------------------------|
    | `direct_convolution`     | whether convolutions of few channels have a kernel that does without copying patches |
    | `direct_inputs`          | input channels that the direct int8 convolution takes at a time                   |
    | `direct_outputs`         | the fewest output channels that it takes                                          |
    | `direct_output_multiple` | output channels that it takes at a time                                           |
    | `padded_output_multiple` | the same where input channels are padded for it: with AVX2 it takes eights        |
    | `padded_kernel`          | the longest side of a kernel for which padding input channels was measured to pay |
    | `depthwise_multiple`     | channels that the depthwise int8 convolution takes at a time                      |
    | `depthwise_growth`       | what layers may grow by to get such a multiple                                    |
    | `depthwise_exchange`     | products of an ordinary convolution in the time that one of a depthwise one saves |
    | `float_block`            | channels in a block of float convolutions                                         |
    | `recurrent_weights`      | from so many weights on, both matrices together, the integer LSTM is faster       |
    | `global_pooling`         | whether an integer mean over the whole map is fast where others are slow          |
    | `slow_subnormals`        | whether subnormal numbers are slow to multiply                                    |
    """

    name: str
    activations: QType
    weights: QType
    why: str
    direct_convolution: bool = True
    direct_inputs: int = 4
    direct_outputs: int = 16
    direct_output_multiple: int = 4
    padded_output_multiple: int = 8
    padded_kernel: int = 7
    depthwise_multiple: int = 16
    # 0.06 ns against 0.0054: see graph/passes/pad_channels.py.
    depthwise_growth: float = 1.25
    depthwise_exchange: float = 11.0
    # With AVX-512; with AVX2 blocks are of 8.
    float_block: int = 16
    # With VNNI 64 units were faster by a few percent, 128 by 1.6 times, 256 by 2.4, 512 by 7, whose float weights leave
    # the cache; 32 are slower.
    recurrent_weights: int = 48_000
    global_pooling: bool = True
    slow_subnormals: bool = True


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

# What is taken where no target is given.
USUAL = TARGETS["x86-vnni"]


def resolve_target(name: str) -> Target:
    """The target called ``name``; ``auto`` is the CPU this runs on. Raises ``ConfigError`` for an unknown name."""
    key = _this_cpu() if name == "auto" else name
    if key not in TARGETS:
        raise ConfigError(f"unknown target '{name}'", hint=f"choose auto, {', '.join(TARGETS)}")
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
