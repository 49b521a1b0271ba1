"""Plain statements for the report about how weights are stored and what that means for the computing."""

from __future__ import annotations

from collections import Counter

from onnxq.config import Config
from onnxq.plan import Plan, Storage
from onnxq.weights import weight_format

_NAMED = 4


def storage_notes(plan: Plan, config: Config) -> tuple[str, ...]:
    """What ``plan`` does with fewer bits than 8, a line each; nothing where it does nothing of that."""
    notes = []
    packed = Counter(str(w.stored) for w in plan.weights if w.stored.packed and w.storage is not Storage.BLOCKS)
    if packed:
        formats = ", ".join(f"{count} as {name}" for name, count in packed.most_common())
        notes.append(f"weights are packed: {formats}; the runtime unpacks them once, when it loads the model")
    if config.native and "int4" in packed:
        notes.append("weights of 4 bits are int4 tensors (int4_storage): onnxruntime 1.23 or newer runs this model")
    if weight_format(config.usual_weights).packed:
        wide = [w.node for w in plan.weights if str(w.stored) == config.first_last != config.weights]
        if wide:
            notes.append(f"first and last layers are stored as {config.first_last} (first_last): {_listed(wide)}")
    blocks = [w for w in plan.weights if w.storage is Storage.BLOCKS]
    if blocks:
        rounded = "their inputs are rounded to 8 bits for each block" if config.accuracy_level == 4 else "in float32"
        sizes = ", ".join(sorted({str(w.stored) for w in blocks}))
        notes.append(f"{len(blocks)} layers compute with 4-bit weights (MatMulNBits, {sizes}); {rounded}")
    if config.simulated:
        notes.append(
            f"activations have {config.activation_bits} bits, which no kernel of this CPU computes with: "
            "the model shows what they cost in accuracy, and is no faster"
        )
    return tuple(notes)


def _listed(names: list[str]) -> str:
    return ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
