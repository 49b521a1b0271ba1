"""Calling what the user wrote: what it raises, and what it returns that is no number, is shown as theirs."""

from __future__ import annotations

import inspect
import math
import numbers
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from onnxq.errors import DataError, OnnxqError, one_line


def number(value: Any, name: str, place: str) -> float:
    """``value`` as a float. Raises ``DataError`` where it is none, or NaN."""
    hint = "return one number, higher is better"
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value[()]
    if not isinstance(value, (numbers.Real, np.bool_)):
        shape = f" of shape {list(value.shape)}" if isinstance(value, np.ndarray) else ""
        raise DataError(f"metric {name} returned {type(value).__name__}{shape} for {place}", hint=hint)
    found = float(value)
    if not math.isfinite(found):
        raise DataError(f"metric {name} returned {found} for {place}", hint=hint)
    return found


def called(function: Callable[..., Any], arguments: tuple[Any, ...], name: str, place: str) -> Any:
    try:
        return function(*arguments)
    except (OnnxqError, KeyboardInterrupt):
        raise
    except BaseException as error:  # whatever the user's code raises is shown as theirs, SystemExit too
        raise DataError(
            f"metric {name} raised {type(error).__name__} for {place}: {one_line(error)}",
            hint="correct the function; outputs come as onnxruntime gives them, batch axis included",
        ) from error


def takes(function: Callable[..., Any], count: int) -> bool:
    """Whether ``function`` can be called with so many arguments, as far as it says."""
    try:
        inspect.signature(function).bind(*range(count))
    except TypeError:
        return False
    except ValueError:  # built-in functions that do not say
        return True
    return True


def short(name: str) -> str:
    """The name of a function without that of its module."""
    last = name.rpartition(":")[2].rpartition(".")[2]
    return last if last.isidentifier() else "metric"


def packed(values: Sequence[Any]) -> Any:
    """``values`` as one array where they are alike: arrays with a batch axis of 1 joined along it, others stacked."""
    if not all(isinstance(value, (np.ndarray, np.generic, int, float)) for value in values):
        return list(values)
    arrays = [np.asarray(value) for value in values]
    if len({array.shape for array in arrays}) > 1:
        return list(values)
    return np.concatenate(arrays) if arrays[0].shape[:1] == (1,) else np.stack(arrays)
