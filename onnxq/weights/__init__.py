"""How weights are stored, as objects: one file for each family of formats, one line for each in ``registry``.

What computes with them are 8-bit integers: in every format a real value is a scale for each channel times an integer
from -127 to 127. Packed codes become that integer once, when the runtime loads the model, and the integer kernels of
INT8 do the rest. ``nbits`` alone is read by a kernel of its own, where inputs are float.

| name        | module     | real value       | bits a weight                                       |
|-------------|------------|------------------|-----------------------------------------------------|
| `int8`      | `uniform`  | ``s_c q``        | 8 + 40 / n                                          |
| `intB`      | `uniform`  | ``s_c q``        | B + 40 / n                                          |
| `intB:S`    | `blocks`   | ``s_c m_b q``    | B + 8 / S + 40 / n                                  |
| `codebookB` | `codebook` | ``s_c L[q]``     | B + 40 / n, and a table: 0.5 KB at 4 bits, 16 at 3, 1 at 2 |
| `int4:S`    | `nbits`    | ``s_b q``        | 4 + 32 / S, weights of linear layers where activations stay float |
| `uint4:S`   | `nbits`    | ``s_b (q - z_b)`` | 4 + 36 / S, likewise                               |

n: weights of one output channel (Conv ``[C, n / k / k, k, k]``, MatMul ``[n, C]``); 40 / n: a float32 scale and the
kernel's zero point. A format says which values there are (``grid``), how it is stored (``representation``: the arrays
in the file, a reference that reads them, the nodes that do so in a graph), how many bytes that is, and what a file with
it is called.

Internal: what is public is what ``onnxq`` exports.
"""

from onnxq.config.formats import Family, FormatName
from onnxq.weights.format import GridFormat, Rows, WeightFormat
from onnxq.weights.nbits import NBits
from onnxq.weights.registry import register, unregister, weight_format
from onnxq.weights.representation import Foldable, Levels, Plain, Representation, StoredWeight
from onnxq.weights.uniform import for_rows
from onnxq.weights.unpacking import Writer

__all__ = [
    "Family",
    "Foldable",
    "FormatName",
    "GridFormat",
    "Levels",
    "NBits",
    "Plain",
    "Representation",
    "Rows",
    "StoredWeight",
    "WeightFormat",
    "Writer",
    "for_rows",
    "register",
    "unregister",
    "weight_format",
]
