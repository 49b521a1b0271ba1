"""What a quantized file says of how it was made."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace

from onnxq._version import __version__
from onnxq.config import Config
from onnxq.plan import Plan


def provenance(config: Config, made_from: str) -> dict[str, str]:
    """onnxq's version, what the ranges were ``made_from``, and the configuration as JSON."""
    return {
        "onnxq": __version__,
        "calibration": made_from,
        "config": json.dumps(asdict(replace(config, resume=False)), sort_keys=True),
    }


def metadata(config: Config, made_from: str, plan: Plan, equalized: Mapping[str, str]) -> str:
    """The entry that onnxq adds to a file, JSON: ``provenance``, the nodes that stayed float by reason, and by tensor
    what channels were multiplied by (``Equalized.steps``)."""
    reasons: dict[str, list[str]] = {}
    for skipped in plan.skipped:
        reasons.setdefault(skipped.reason, []).append(skipped.node)
    written = {**provenance(config, made_from), "float": reasons, "equalized": dict(equalized)}
    return json.dumps(written, sort_keys=True)
