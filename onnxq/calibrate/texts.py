"""Feeds from text: a sample a line (``.txt``) or an object a line (``.jsonl``), through a ``tokenizer.json``."""

from __future__ import annotations

import contextlib
import json
from array import array
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from onnxq.calibrate.casting import Array, fit
from onnxq.calibrate.layout import Layout
from onnxq.calibrate.options import FeedOptions
from onnxq.calibrate.sources import Indexed, Piece
from onnxq.calibrate.tokenizer_file import find_tokenizer, load_tokenizer, require_tokenizer
from onnxq.errors import DataError, one_line
from onnxq.files.opening import Unfit, open_file, size_text
from onnxq.graph.signature import TensorSpec

if TYPE_CHECKING:
    from tokenizers import Encoding

SUFFIXES = (".txt", ".jsonl")
DEFAULT_LENGTH = 512
# Bytes in a line, lines in a file, tokens in a sample: more is no data for a model.
LONGEST_LINE = 1 << 20
MOST_LINES = 10_000_000
MOST_TOKENS = 1 << 20
# The longest lines are tokenized in a process of their own first.
_TRIED_LINES = 3
# Input names in use, without the ":0" of models from TensorFlow, and what they hold.
_ROLES = {
    "input_ids": "ids",
    "attention_mask": "mask",
    "input_mask": "mask",
    "token_type_ids": "types",
    "segment_ids": "types",
    "position_ids": "positions",
}
_PAD_TOKENS = ("[PAD]", "<pad>", "<|pad|>", "<|endoftext|>", "</s>")


class TextSource(Indexed):
    """The lines of ``path`` as samples ``[1, tokens]``; only the offsets of the lines stay in memory.

    Samples of differing length are padded on the right to the longest of their feed, or to the model's fixed length.
    """

    def __init__(self, path: Path, layout: Layout, options: FeedOptions) -> None:
        self._path, self.layout, self._field = path, layout, options.text_field
        self.where = path.name
        self._roles = _roles(layout, self.where)
        self._lines = _line_offsets(path)
        if not self._lines:
            raise DataError(f"{path} is empty", hint="give a text a line")
        self._fixed = self._fixed_length()
        self._length = self._fixed or options.max_length or DEFAULT_LENGTH
        if self._length > MOST_TOKENS:
            raise DataError(f"{self.where}: {self._length} tokens a sample are more than the {MOST_TOKENS} of a text")
        found = find_tokenizer(path, options)
        longest = min(self._length, options.max_length or self._length)
        require_tokenizer(found, self._longest_texts(), longest)
        self._tokenizer = load_tokenizer(found)
        # The file may bring padding and truncation of its own; the model's shape decides here.
        pad = self._tokenizer.padding or {}
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_length=longest)
        known = (self._tokenizer.token_to_id(t) for t in _PAD_TOKENS)
        fallback = next((i for i in known if i is not None), 0)
        self._pad = options.pad_id if options.pad_id is not None else int(pad.get("pad_id", fallback))
        pads = {"ids": self._pad, "mask": 0, "types": int(pad.get("pad_type_id", 0)), "positions": 0}
        self.padding = {name: pads[role] for name, role in self._roles.items()}
        self.description = f"{self.where}, {len(self._lines)} texts of at most {self._length} tokens by {found.name}"

    def _longest_texts(self) -> list[str]:
        """A few of the longest lines that can be read."""
        ends = [*self._lines[1:], self._lines[-1] + LONGEST_LINE]
        order = sorted(range(len(self._lines)), key=lambda i: self._lines[i] - ends[i])
        texts = []
        for index in order[:_TRIED_LINES]:
            with contextlib.suppress(DataError):  # it may never be asked for
                texts.append(self._text(index))
        return texts

    def _fixed_length(self) -> int | None:
        lengths = {s.shape[-1] for s in self.layout.inputs if s.shape}
        numbers = {d for d in lengths if isinstance(d, int)}
        if len(numbers) > 1:
            raise DataError(
                f"the model's inputs want different lengths ({', '.join(map(str, self.layout.inputs))})",
                hint="give an .npz",
            )
        return numbers.pop() if numbers else None

    def count(self) -> int:
        return len(self._lines)

    def _text(self, index: int) -> str:
        with open_file(self._path) as file:
            file.seek(self._lines[index])
            line = file.readline(LONGEST_LINE)
        where = f"line at sample {index} of {self.where}"
        try:
            text = line.decode("utf-8-sig").strip("\r\n")
        except UnicodeDecodeError as error:
            raise DataError(f"{where} is not UTF-8", hint="convert the file") from error
        if self._path.suffix.lower() != ".jsonl":
            return text
        try:
            entry = json.loads(text)
        except (ValueError, RecursionError) as error:  # RecursionError: nested too deeply
            raise DataError(f"{where} is not JSON ({one_line(error)})", hint="give one object a line") from error
        if not isinstance(entry, dict) or not isinstance(entry.get(self._field), str):
            keys = ", ".join(map(repr, entry)) if isinstance(entry, dict) else type(entry).__name__
            raise DataError(
                f"{where} has no text under {self._field!r} (it has {keys})", hint="name the field that holds it"
            )
        return str(entry[self._field])

    def _encoded(self, index: int) -> Encoding:
        text = self._text(index)
        try:
            return self._tokenizer.encode(text)
        except (KeyboardInterrupt, SystemExit, GeneratorExit):
            raise
        except BaseException as error:  # what Rust panics with (a regular expression without end) is no Exception
            raise DataError(
                f"the line at sample {index} of {self.where} cannot be tokenized ({one_line(error)})",
                hint="remove the line, or give the tokenizer that belongs to the model with --tokenizer",
            ) from error

    def __getitem__(self, index: int) -> Piece:
        if index >= len(self._lines):
            raise IndexError(index)
        encoded = self._encoded(index)
        tokens = len(encoded.ids)
        if tokens == 0:
            raise DataError(f"sample {index} of {self.where} gives no tokens", hint="remove that line")
        values = {
            "ids": encoded.ids,
            "mask": encoded.attention_mask,
            "types": encoded.type_ids,
            "positions": range(tokens),
        }
        arrays: dict[str, Array] = {}
        rows = 1
        for spec in self.layout.inputs:
            row = np.asarray(values[self._roles[spec.name]], np.int64)
            if self._fixed is not None and tokens < self._fixed:
                row = np.pad(row, (0, self._fixed - tokens), constant_values=self.padding[spec.name])
            row = fit(row, spec.dtype, where=f"input {spec.name!r} ({self.where})", sample=index)
            if spec.shape is not None and len(spec.shape) == 1:
                rows = len(row)  # the axis that might be a batch is the tokens: such a sample is a feed by itself
            else:
                row = row[None]
            arrays[spec.name] = row
        return Piece(arrays, rows)


def _roles(layout: Layout, where: str) -> dict[str, str]:
    """What each input holds: ``{input: ids | mask | types | positions}``; DataError where one wants no tokens."""
    roles: dict[str, str] = {}
    for spec in layout.inputs:
        role = _ROLES.get(spec.name.removesuffix(":0"))
        if role is None and len(layout.inputs) == 1 and _integral(spec):
            role = "ids"
        if role is None or (spec.shape is not None and len(spec.shape) not in (1, 2)):
            raise DataError(
                f"{where} is text, which cannot fill the input {spec} (known: {', '.join(_ROLES)})", hint="give an .npz"
            )
        roles[spec.name] = role
    return roles


def _integral(spec: TensorSpec) -> bool:
    return spec.dtype is not None and np.dtype(spec.dtype).kind in "iu"


def _line_offsets(path: Path) -> array[int]:
    """Where each line that is not blank begins, in bytes."""
    offsets, position, number = array("Q"), 0, 0
    try:
        with open_file(path) as file:
            while line := file.readline(LONGEST_LINE + 1):
                if len(line) > LONGEST_LINE:
                    raise Unfit(f"line {number + 1} has more than {size_text(LONGEST_LINE)}; a sample is one line")
                if line.strip():
                    offsets.append(position)
                    if len(offsets) > MOST_LINES:
                        raise Unfit(f"it has more than {MOST_LINES:,} lines")
                position += len(line)
                number += 1
    except OSError as error:
        raise DataError(f"{path} cannot be read ({one_line(error)})", hint="check the path") from error
    return offsets
