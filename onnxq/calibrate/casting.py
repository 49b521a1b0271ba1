"""Casts of the user's arrays to what a model's input wants: only those that lose nothing.

| from            | to              | accepted                                                             |
|-----------------|-----------------|----------------------------------------------------------------------|
| any             | wider           | always (numpy's ``safe``)                                            |
| integer         | float           | where every value is exactly representable (uint8 to float32)        |
| integer         | integer, bool   | where every value fits                                               |
| float64         | float32         | where no value overflows: numpy makes float64 unasked                |
| float32/64      | float16         | where no value overflows: only a float16 input asks for it           |
| float           | integer, bool   | never                                                                |
| text            | object          | always: onnxruntime takes strings as objects                         |
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from onnxq.errors import DataError

Array = npt.NDArray[Any]


def check_kind(found: np.dtype[Any], wanted: npt.DTypeLike | None, *, where: str) -> None:
    """Nothing; raises ``DataError`` where no value of dtype ``found`` may become ``wanted``.

    ``where`` names input, array and file; it begins the message.
    """
    if wanted is None or _kind_ok(found, np.dtype(wanted)):
        return
    raise DataError(
        f"{where} has dtype {found} but the model wants {np.dtype(wanted)}", hint="convert it with .astype() first"
    )


def fit(array: Array, wanted: npt.DTypeLike | None, *, where: str, sample: int) -> Array:
    """``array`` in the dtype ``wanted`` (None: as it is), same shape; not copied where nothing changes.

    Raises ``DataError`` with input, array, file and ``sample`` (its number in the file) for a value that the dtype
    cannot hold. Infinity and NaN are data: attention masks hold the one, missing values are the other, and whether it
    is one too many shows at the model's outputs.
    """
    check_kind(array.dtype, wanted, where=where)
    if wanted is None:
        return array
    target = np.dtype(wanted)
    if array.dtype == target:
        return array
    with np.errstate(over="ignore"):  # an overflow is reported below, with its place
        cast = array.astype(target)
    if not np.can_cast(array.dtype, target, "safe") and not _kept(array, cast):
        raise DataError(
            f"{where} has dtype {array.dtype}, and sample {sample} holds values (from {np.nanmin(array)} to "
            f"{np.nanmax(array)}) that the model's {target} cannot hold",
            hint="convert or rescale it first",
        )
    return cast


def _kind_ok(found: np.dtype[Any], wanted: np.dtype[Any]) -> bool:
    if wanted.kind == "O":
        return found.kind in "OUST"
    if found.kind in "iu":
        return wanted.kind in "iufb"
    if found.kind == "f":
        return wanted.kind == "f"
    return found == wanted or (wanted.kind != "V" and np.can_cast(found, wanted, "safe"))


def _kept(array: Array, cast: Array) -> bool:
    """Whether ``cast`` holds the values of ``array`` (of floats: whether no more became infinite)."""
    if array.size == 0 or cast.dtype.kind == "O":
        return True
    if array.dtype.kind == "f":
        return bool(np.array_equal(np.isinf(cast), np.isinf(array)))
    low, high = int(array.min()), int(array.max())
    if cast.dtype.kind == "b":
        return low >= 0 and high <= 1
    if cast.dtype.kind in "iu":
        limits = np.iinfo(cast.dtype)
        return low >= limits.min and high <= limits.max
    exact = 2 ** (np.finfo(cast.dtype).nmant + 1)  # up to here every integer is a float
    if -exact <= low and high <= exact:
        return True
    return bool((cast.astype(np.longdouble) == array.astype(np.longdouble)).all())
