"""The choices, by what they are about, each with its only default."""

from __future__ import annotations

from dataclasses import dataclass

from onnxq.config.choices import choice
from onnxq.config.judged import JUDGE_KINDS
from onnxq.config.rules import Rule

# Bits of each layer's weight by sensitivity.
AUTO = "auto"

# What ``ranges.layer`` knows; importing that would cost numpy, which ``onnxq --help`` does without.
OBJECTIVES = ("auto", "tensor", "diagonal", "output")
# What ``kernels.targets`` knows, for the same reason.
TARGET_NAMES = ("auto", "x86-vnni", "x86-amx", "x86-avx2", "arm64")


@dataclass(frozen=True)
class WeightChoices:
    """How weights are stored and how their codes are found."""

    weights: str = choice(
        "int8",
        "How weights are stored: int2 to int6, int8, int4:32 (blocks), codebook4, ...; auto gives each layer bits by "
        "its sensitivity, to size_budget or min_sqnr",
        flag="--weights",
        metavar="FORMAT",
        planning=True,
    )
    size_budget: float | None = choice(
        None,
        "Give each layer bits by its sensitivity, so that the file is at most this share of the float one, as 0.15",
        unit="share",
        above=0.0,
        below=1.0,
        flag="--size-budget",
        metavar="SHARE",
    )
    first_last: str = choice(
        "int8",
        "Format of the first and the last layers where weights have 4 bits or fewer",
        flag="--first-last",
        metavar="FORMAT",
    )
    int4_storage: str = choice(
        "packed",
        "How 4-bit weights lie in the file; native int4 tensors load faster and in less memory, in onnxruntime 1.23 "
        "and newer only",
        options=("packed", "native"),
        flag="--int4-storage",
        metavar="HOW",
        planning=True,
    )
    rounding: str = choice(
        "auto",
        "How weights are rounded; auto compensates below 7 bits, and in layers with few inputs",
        options=("auto", "nearest", "compensated"),
        flag="--rounding",
        metavar="HOW",
    )
    weight_range: str = choice("mse", "Method for weight scales (see onnxq.ranges)")
    objective: str = choice(
        "auto", "What mse minimises for weights", options=OBJECTIVES, flag="--objective", metavar="WHAT"
    )
    restore: str = choice(
        "mean+gain",
        "What is put right after rounding weights",
        options=("none", "mean", "gain", "mean+gain"),
        flag="--restore",
        metavar="WHAT",
    )
    accuracy_level: int = choice(
        4,
        "Of MatMulNBits: 4 rounds its inputs to 8 bits for each block, 1 computes in float32",
        options=(0, 1, 4),
        flag="--accuracy-level",
        metavar="N",
    )


@dataclass(frozen=True)
class ActivationChoices:
    """What activations become."""

    activations: str = choice(
        "uint8",
        "Type of quantized activations; uint6 and uint4 are simulated, none quantizes weights only",
        options=("uint8", "uint6", "uint4", "none"),
        flag="--activations",
        metavar="TYPE",
        planning=True,
    )
    activation_range: str = choice("mse", "Method for activation scales and zero points (see onnxq.ranges)")
    equalize: str = choice(
        "auto",
        "Channels made alike before rounding; auto where it makes less noise and costs nothing, and at the price of a "
        "pass before layers would go back to float; all at that price wherever it halves the noise",
        options=("auto", "none", "all"),
        flag="--equalize",
        metavar="HOW",
    )


@dataclass(frozen=True)
class SearchChoices:
    """What runs on integers, and which result is good enough."""

    target: str = choice(
        "auto",
        "CPU to quantize for; auto is the one this runs on",
        options=TARGET_NAMES,
        flag="--target",
        metavar="CPU",
        planning=True,
    )
    operators: str = choice(
        "onnxruntime",
        "Operators of the result: onnxruntime's own where they are faster, or those of the ONNX standard only",
        options=("onnxruntime", "standard"),
        flag="--operators",
        metavar="WHICH",
    )
    placement: str = choice(
        "cost",
        "Integers where they pay, or wherever there is an integer kernel",
        options=("cost", "all"),
        flag="--placement",
        metavar="WHERE",
        planning=True,
    )
    rules: tuple[Rule, ...] = choice((), "Ordered; for each node the first match wins")
    judge: tuple[tuple[str, str], ...] = choice(
        (), "What outputs are for, by name, where the guess is wrong: " + ", ".join(JUDGE_KINDS)
    )
    min_agreement: float = choice(
        0.99,
        "Layers go back to float until every output keeps this share of what it is judged by; 0: never",
        unit="share",
        least=0.0,
        most=1.0,
        flag="--min-agreement",
        metavar="SHARE",
    )
    keep_accuracy: str = choice(
        "default",
        "How much speed may be given for accuracy: as much as the promise takes, strict a tenth of the loss that "
        "min_agreement allows, fast three times that loss and next to no speed",
        options=("strict", "default", "fast"),
        flag="--keep-accuracy",
        metavar="HOW",
    )
    guard_sqnr: float = choice(
        10.0,
        "Layers go back to float until every output reaches this SQNR, in dB, or nothing more is gained",
        unit="dB",
        flag="--guard-sqnr",
        metavar="DB",
    )
    min_sqnr: float | None = choice(
        None,
        "A result whose outputs' SQNR is below this, in dB, is reported as failed (exit code 3); with weights auto, "
        "what to reach",
        unit="dB",
        flag="--min-sqnr",
        metavar="DB",
    )
    labels: str = choice(
        "",
        "Name of the array in the data that holds labels: class indices give the accuracy of both models, a metric "
        "gets them whatever they are, and adapt full trains towards them",
        flag="--labels",
        metavar="KEY",
    )
    metric: str = choice(
        "",
        "Measure of your own, which decides instead of agreement and SQNR: a function of one sample's outputs (and its "
        "label), or two with a comma between, outputs -> prediction and (predictions, labels) -> score; more is "
        "better; code, so that no configuration file may name it",
        flag="--metric",
        metavar="MODULE:FUNCTION",
        code=True,
    )
    max_drop: float | None = choice(
        None,
        "The most that the metric, or with labels alone top-1, may lose: in its own unit, as 0.005, or in points of a "
        "share, as 0.5%",
        least=0.0,
        flag="--max-drop",
        metavar="DROP",
        written="1 % of what the float model reaches",
    )
    tune_seconds: float = choice(
        0.0,
        "Time for finding the fastest placement by measuring on this machine; found once, it is remembered; 0: none",
        unit="seconds",
        least=0.0,
        flag="--tune",
        metavar="SECONDS",
    )


@dataclass(frozen=True)
class AdaptChoices:
    """Whether and how long weights are adapted to the noise before them."""

    adapt: str = choice(
        "none",
        "Adapt weights to the noise of quantization before them, on the calibration inputs; worth it below 8 bits",
        options=("none", "fast", "iterative", "full"),
        flag="--adapt",
        metavar="LEVEL",
    )
    adapt_seconds: float = choice(
        0.0,
        "The longest that adapt may take, as 90s or 10m; 0: seven minutes for iterative, no limit for full",
        unit="seconds",
        least=0.0,
        flag="--adapt-budget",
        metavar="TIME",
    )
    resume: bool = choice(
        False, "Go on with an adaptation of this model, data and choices that was stopped", flag="--resume"
    )


@dataclass(frozen=True)
class RunChoices:
    """What a run may use, and what it measures."""

    samples: int = choice(
        512,
        "Use at most so many calibration samples, evenly spaced over the data",
        unit="samples",
        least=1,
        flag="--samples",
        metavar="N",
    )
    held_out: float = choice(
        0.125,
        "Share of the samples kept back from calibration, to judge the result",
        unit="share",
        least=0.0,
        most=0.5,
        flag="--held-out",
        metavar="SHARE",
    )
    latency_seconds: float = choice(
        0.0,
        "Time for comparing latency with float, for each number of threads; 0: none",
        unit="seconds",
        least=0.0,
        flag="--latency",
        metavar="SECONDS",
        command=2.0,  # whoever runs the command wants to read the gain; a library call need not wait for it unasked
    )
    memory: int | None = choice(
        None,
        "Memory that quantizing keeps to, in MB: what does not fit lies in files in the folder for temporary files",
        unit="MB",
        least=200,
        flag="--memory",
        metavar="MB",
        written="twice the model and 400",
    )
    seed: int = choice(0, "Of all that is random", least=0, flag="--seed", metavar="N")


# In the order of the reference and of ``--help``: the title of each group, and the group.
GROUPS: tuple[tuple[str, type], ...] = (
    ("Weights", WeightChoices),
    ("Activations", ActivationChoices),
    ("Search", SearchChoices),
    ("Adaptation", AdaptChoices),
    ("Run", RunChoices),
)
