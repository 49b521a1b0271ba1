"""onnxq: quantize an ONNX model for onnxruntime's CPU kernels, without losing its accuracy.

What ``__all__`` names is the public interface; all modules below are internal and may change in any release. The
names load their modules on first use, so that ``import onnxq`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module

from onnxq._version import __version__

# Not from typing: with ``python -m onnxq`` that would be whatever typing.py lies in the current folder.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from onnxq.analysis.evaluation import Evaluation, evaluate
    from onnxq.analysis.inspection import Inspection, inspect
    from onnxq.analysis.running import benchmark, run_model
    from onnxq.calibrate.feeds import Feed, FeedOptions, ImageOptions, open_feed
    from onnxq.config import Config, Rule, load_config
    from onnxq.errors import (
        ConfigError,
        DataError,
        ModelError,
        NumericsError,
        OnnxqError,
        OutputError,
        RuntimeFailure,
    )
    from onnxq.measure.compare import Comparison
    from onnxq.measure.latency import LatencyReport
    from onnxq.pipeline import Result, quantize
    from onnxq.plan.types import Plan
    from onnxq.report.report import Report

_HOME = {
    "Comparison": "measure.compare",
    "Config": "config",
    "ConfigError": "errors",
    "DataError": "errors",
    "Evaluation": "analysis.evaluation",
    "Feed": "calibrate.feeds",
    "FeedOptions": "calibrate.feeds",
    "ImageOptions": "calibrate.feeds",
    "Inspection": "analysis.inspection",
    "LatencyReport": "measure.latency",
    "ModelError": "errors",
    "NumericsError": "errors",
    "OnnxqError": "errors",
    "OutputError": "errors",
    "Plan": "plan.types",
    "Report": "report.report",
    "Result": "pipeline",
    "Rule": "config",
    "RuntimeFailure": "errors",
    "benchmark": "analysis.running",
    "evaluate": "analysis.evaluation",
    "inspect": "analysis.inspection",
    "load_config": "config",
    "open_feed": "calibrate.feeds",
    "quantize": "pipeline",
    "run_model": "analysis.running",
}

__all__ = [
    "Comparison",
    "Config",
    "ConfigError",
    "DataError",
    "Evaluation",
    "Feed",
    "FeedOptions",
    "ImageOptions",
    "Inspection",
    "LatencyReport",
    "ModelError",
    "NumericsError",
    "OnnxqError",
    "OutputError",
    "Plan",
    "Report",
    "Result",
    "Rule",
    "RuntimeFailure",
    "__version__",
    "benchmark",
    "evaluate",
    "inspect",
    "load_config",
    "open_feed",
    "quantize",
    "run_model",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"onnxq.{_HOME[name]}"), name)
    raise AttributeError(f"module 'onnxq' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
