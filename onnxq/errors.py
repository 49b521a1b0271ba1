"""Every error that onnxq raises on purpose; the message is one line that says what is wrong and what to do.

::

    OnnxqError                  catch this one to catch them all
    ├── ModelError              the ONNX file: unreadable, truncated, unsupported, already quantized
    ├── DataError               the calibration or test data: wrong name, shape or dtype, empty, NaN
    ├── ConfigError             an option, a rule or a configuration file
    ├── NumericsError           quantization parameters that break their own definition
    ├── RuntimeFailure          onnxruntime refused to load or run a model
    └── OutputError             the result could not be written
"""

from __future__ import annotations


class OnnxqError(Exception):
    """Base of all errors that onnxq raises on purpose."""


class ModelError(OnnxqError):
    """The ONNX model cannot be read or cannot be quantized."""


class DataError(OnnxqError):
    """Calibration or test data does not fit the model, or holds nothing usable."""


class ConfigError(OnnxqError, ValueError):
    """An option or a rule has a value that makes no sense."""


class NumericsError(OnnxqError, ValueError):
    """Quantization parameters violate their specification (see ``QuantParams``)."""


class RuntimeFailure(OnnxqError):
    """onnxruntime refused to load or to run a model."""


class OutputError(OnnxqError):
    """The result could not be written; nothing was left half-written."""


def one_line(error: BaseException, *, limit: int = 300) -> str:
    """The text of ``error`` as one line of at most ``limit`` characters, for embedding in another message."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."
