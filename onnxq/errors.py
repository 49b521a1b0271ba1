"""Every error that onnxq raises on purpose: one line says what is wrong and where, a hint what to do about it.

::

    OnnxqError                  catch this one to catch them all
    ├── ModelError              the ONNX file: unreadable, truncated, unsupported, already quantized
    ├── DataError               the calibration or test data: wrong name, shape or dtype, empty, NaN
    ├── ConfigError             an option, a rule or a configuration file
    ├── NumericsError           quantization parameters that break their own definition
    ├── RuntimeFailure          onnxruntime refused to load or run a model
    │   └── RunFailure          it loaded the model, and failed on an input
    └── OutputError             the result could not be written
"""

from __future__ import annotations


class OnnxqError(Exception):
    """Base of all errors that onnxq raises on purpose: ``what`` is wrong, and a ``hint`` or the empty string.

    As text the two are one line: ``what; hint``.
    """

    def __init__(self, what: str = "", *, hint: str = "") -> None:
        super().__init__(f"{what}; {hint}" if hint else what)
        self.what, self.hint = what, hint


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


class RunFailure(RuntimeFailure):
    """onnxruntime loaded a model and failed while running it."""


class OutputError(OnnxqError):
    """The result could not be written; nothing was left half-written."""


def one_line(error: BaseException | str, *, limit: int = 300) -> str:
    """``error`` as one line of at most ``limit`` characters; an exception without a text is named by its type."""
    text = " ".join(str(error).split()) or ("" if isinstance(error, str) else type(error).__name__)
    return text if len(text) <= limit else text[: limit - 3] + "..."
