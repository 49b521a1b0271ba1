"""The user's choices, as one frozen value; read from keyword arguments, from a TOML file, or from the command line.

Internal: what is public is what ``onnxq`` exports.
"""

from onnxq.config.config import Config, choice_table
from onnxq.config.groups import AUTO, GROUPS, OBJECTIVES, TARGET_NAMES
from onnxq.config.judged import JUDGE_KINDS
from onnxq.config.presets import PRESETS, preset
from onnxq.config.rules import PRECISIONS, Rule
from onnxq.config.toml import config_from, config_text, load_config

__all__ = [
    "AUTO",
    "GROUPS",
    "JUDGE_KINDS",
    "OBJECTIVES",
    "PRECISIONS",
    "PRESETS",
    "TARGET_NAMES",
    "Config",
    "Rule",
    "choice_table",
    "config_from",
    "config_text",
    "load_config",
    "preset",
]
