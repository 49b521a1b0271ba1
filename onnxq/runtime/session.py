"""Sessions of onnxruntime on the CPU: the only place in onnxq that opens one, and the words for what it refuses."""

from __future__ import annotations

import ctypes
import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeAlias
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from onnxq.errors import DataError, OnnxqError, RunFailure, RuntimeFailure, one_line
from onnxq.runtime.contents import contents
from onnxq.runtime.proto import Model, label, load_proto

if TYPE_CHECKING:
    from onnxruntime import InferenceSession, OrtValue, SessionOptions

Level: TypeAlias = Literal["none", "basic", "extended", "all"]
Feed: TypeAlias = Mapping[str, npt.NDArray[Any]]

_LEVELS = {
    "none": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "all": "ORT_ENABLE_ALL",
}
_FATAL = 4
# What messages call the model of a session.
_called: WeakKeyDictionary[Any, str] = WeakKeyDictionary()
# Configuration under which idle threads sleep at once: for sessions that live side by side.
QUIET = {"session.intra_op.allow_spinning": "0"}
# Configuration under which ``open_to_look`` packs weights: for models that run more often, or on integers.
PACKED = {"session.disable_prepacking": "0"}
# Above this size the weights of a saved optimised graph go to a file beside it: its reader wants the graph only.
_EXTERNAL_BYTES = 1024


def open_session(
    model: Model,
    *,
    threads: int | None = None,
    optimize: Level = "all",
    save_optimized: Path | None = None,
    config: Mapping[str, str] | None = None,
    data_folder: Path | None = None,
    profile: Path | None = None,
) -> InferenceSession:
    """An ``InferenceSession`` of ``model`` on the CPU that prints nothing; the process's own logger stays as it is.

    ``threads``: for one operator; None leaves onnxruntime's choice. Operators run one after another.
    ``save_optimized``: where to write the graph that really runs, its weights in a ``.data`` file beside it.
    ``config``: session configuration entries. ``data_folder``: where external data lies if ``model`` is bytes.
    ``profile``: what the names of the files begin with that tell the time of every node; written by ``end_profiling``.

    Raises ``RuntimeFailure`` where onnxruntime refuses the model and ``ModelError`` where the file is not ONNX.
    """
    options = _options(threads, optimize, profile)
    entries = dict(config or {})
    if save_optimized is not None:
        options.optimized_model_filepath = str(save_optimized)
        entries["session.optimized_model_external_initializers_file_name"] = save_optimized.name + ".data"
        entries["session.optimized_model_external_initializers_min_size_in_bytes"] = str(_EXTERNAL_BYTES)
    if data_folder is not None:
        entries["session.model_external_initializers_file_folder_path"] = str(data_folder)
    return _opened(model, options, entries)


def _options(threads: int | None, optimize: Level, profile: Path | None) -> SessionOptions:
    """What all sessions have in common."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = _FATAL
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, _LEVELS[optimize])
    options.inter_op_num_threads = 1
    if threads is not None:
        options.intra_op_num_threads = threads
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    return options


def _opened(model: Model, options: SessionOptions, entries: Mapping[str, str]) -> InferenceSession:
    import onnxruntime as ort

    for key, value in entries.items():
        options.add_session_config_entry(key, value)
    source = model if isinstance(model, bytes) else str(model)
    try:
        session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own errors share no base class but Exception
        _refuse_load(model, error)
    _called[session] = label(model)
    return session


def open_to_look(
    model: Model,
    *,
    threads: int | None = None,
    optimize: Level = "all",
    config: Mapping[str, str] | None = None,
    profile: Path | None = None,
) -> InferenceSession:
    """A session of a float model whose values are wanted and not its time: the weights of a file stay mapped.

    Packing would copy all of them, which takes as long as many runs; threads that wait for the next run sleep, while
    Python looks at what the last one gave. Nor is memory laid out beforehand: the block for that comes on top of what
    the first run took. Arguments and errors as in ``open_session``.
    """
    options = _options(threads, optimize, profile)
    options.enable_mem_pattern = False
    mapped = {} if isinstance(model, bytes) else {"session.disable_prepacking": "1"}
    return _opened(model, options, {**QUIET, **mapped, **(config or {})})


@cache
def has_codes(opset: int) -> bool:
    """Whether onnxruntime goes to 8-bit codes and back with the operators of this opset."""
    from onnx import TensorProto, helper

    scale, zero = (
        helper.make_tensor("s", TensorProto.FLOAT, [], [1.0]),
        helper.make_tensor("z", TensorProto.UINT8, [], [0]),
    )
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    graph, imports = helper.make_graph(nodes, "codes", [x], [y], [scale, zero]), [helper.make_opsetid("", opset)]
    version = helper.find_min_ir_version_for(imports)
    try:
        open_session(helper.make_model(graph, opset_imports=imports, ir_version=version).SerializeToString(), threads=1)
    except RuntimeFailure:
        return False
    return True


def call(session: InferenceSession, feed: Feed, *, outputs: Sequence[str] | None = None) -> Callable[[], list[Any]]:
    """What runs ``session`` on ``feed`` and returns its values as onnxruntime has them, with nothing left to convert.

    numpy has no bfloat16: such inputs are fed as float32, and ``run`` gives such outputs back as float32.
    """
    named = {i.name: i.type for i in session.get_inputs()}
    if _BFLOAT16 not in (*named.values(), *(o.type for o in session.get_outputs())):
        return partial(session.run, outputs, dict(feed))
    values = {name: _ort_value(np.asarray(array), named.get(name)) for name, array in feed.items()}
    return partial(session.run_with_ort_values, outputs or [o.name for o in session.get_outputs()], values)


_BFLOAT16 = "tensor(bfloat16)"
_BFLOAT16_NUMBER = 16


def _ort_value(array: npt.NDArray[Any], wanted: str | None) -> OrtValue:
    import ml_dtypes
    import onnxruntime as ort

    if wanted != _BFLOAT16:
        return ort.OrtValue.ortvalue_from_numpy(array)
    bits = np.ascontiguousarray(array.astype(ml_dtypes.bfloat16)).view(np.uint16)
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, _BFLOAT16_NUMBER)


def _array(value: Any) -> npt.NDArray[Any]:
    if not hasattr(value, "data_ptr"):
        return contents(value)
    if value.data_type() != _BFLOAT16:
        return np.asarray(value.numpy())
    shape = value.shape()
    memory = (ctypes.c_uint16 * math.prod(shape)).from_address(value.data_ptr())
    # The upper half of a float32 is a bfloat16.
    bits = np.frombuffer(memory, np.uint16).astype(np.uint32) << 16
    array: npt.NDArray[np.float32] = bits.view(np.float32).reshape(shape)
    return array


def run(session: InferenceSession, feed: Feed, *, outputs: Sequence[str] | None = None) -> list[npt.NDArray[Any]]:
    """The ``outputs`` (all, in order, if None) of one run; of sequences, maps and optionals their ``contents``.

    Raises ``DataError`` where ``feed`` does not fit the inputs, ``RunFailure`` where the run itself fails.
    """
    try:
        return [_array(value) for value in call(session, feed, outputs=outputs)()]
    except Exception as error:
        text, fed = one_line(error), ", ".join(f"{name}: {a.dtype}{list(a.shape)}" for name, a in feed.items())
        if any(sign in text for sign in _BAD_FEED):
            wanted = ", ".join(f"{i.name}: {i.type}{i.shape}" for i in session.get_inputs())
            reason = text.partition("INVALID_ARGUMENT : ")[2] or text
            raise DataError(f"the data does not fit the model ({reason}); it takes {wanted}") from error
        name = _called.get(session, "the model")
        if any(sign in text for sign in _NO_MEMORY):
            raise RunFailure(f"the memory does not suffice to run {name} on {fed}", hint=_LESS) from error
        reason = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text)
        raise RunFailure(f"onnxruntime failed while running {name} on {fed}: {reason}") from error


_NO_MEMORY = ("bad_alloc", "Failed to allocate memory", "AllocateRawInternal")
_LESS = "give fewer or smaller samples, or more memory"
_BAD_FEED = (
    "missing from input feed",
    "Invalid input name",
    "Invalid Feed Input Name",
    "invalid dimensions for input",
    "Invalid rank for input",
    "Unexpected input data type",
)


def _refuse_load(model: Model, error: Exception) -> NoReturn:
    """Raise the one-line error for what onnxruntime said when it refused to load ``model``."""
    import onnxruntime as ort

    name, runtime, text = label(model), f"onnxruntime {ort.__version__}", " ".join(str(error).split())
    try:
        proto = load_proto(model)  # a missing, truncated or foreign file is named as such
    except OnnxqError as cause:
        raise cause from error
    newer = "upgrade onnxruntime or export the model again with an older"
    if match := re.search(r"IR version: (\d+), max supported IR version: (\d+)", text):
        raise RuntimeFailure(
            f"{name} has IR version {match[1]} but {runtime} reads up to {match[2]}", hint=f"{newer} IR version"
        ) from error
    if match := re.search(r"Opset (\d+) is under.*?for domain (\S+) is till opset (\d+)", text):
        raise RuntimeFailure(
            f"{name} has opset {match[1]} of {match[2]} but {runtime} knows up to {match[3]}", hint=f"{newer} opset"
        ) from error
    opset = max((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), default=0)
    if match := re.search(r"(?:an implementation|find kernel) for (\S+?)\((\d+)\)", text):
        raise RuntimeFailure(
            f"{name} (opset {opset}) needs {match[1]} of opset {match[2]}, for which {runtime} has no kernel "
            "with these types",
            hint=f"{newer} opset",
        ) from error
    if match := re.search(r"Fatal error: (\S*?)\(-?\d+\) is not a registered function/op", text):
        raise RuntimeFailure(
            f"{name} uses {match[1]}, which {runtime} does not know", hint="export the model with standard operators"
        ) from error
    if "xternal data" in text or "filesystem error" in text:
        match = re.search(r'"([^"]+)"|\[([^\]]+)\]$', text)
        missing = Path(match[1] or match[2]).name if match else "a file"
        raise RuntimeFailure(
            f"{name} keeps weights in {missing}, which cannot be read", hint="put that file beside the model"
        ) from error
    reason = one_line(re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text))
    what = f"{runtime} cannot load {name} (opset {opset}): {reason}"
    raise RuntimeFailure(what, hint="check the model with onnx.checker") from error
