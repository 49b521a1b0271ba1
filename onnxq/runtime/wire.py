"""Protobuf's bytes without its parser: the fields of a message where they lie, and what a field begins with.

A message is a sequence of fields, each a tag (its number and the kind of its value) and a value. Values of variable
length, messages among them, have their length in front.
"""

from __future__ import annotations

from collections.abc import Iterator
from mmap import mmap

VARINT, EIGHT, LENGTH, FOUR = 0, 1, 2, 5


class NoModel(ValueError):
    """It is no message, or is cut."""


def fields(data: mmap | bytes | memoryview, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """(number, where the field begins, where its value does, where it ends) of each field from ``start`` to ``end``."""
    at = start
    while at < end:
        begin = at
        tag, at = _number(data, at, end)
        field, kind = tag >> 3, tag & 7
        if field == 0:
            raise NoModel
        if kind == LENGTH:
            size, at = _number(data, at, end)
            stop = at + size
        elif kind == VARINT:
            _, stop = _number(data, at, end)
        elif kind in (EIGHT, FOUR):
            stop = at + (8 if kind == EIGHT else 4)
        else:
            raise NoModel  # groups, which no version of ONNX has
        if stop > end:
            raise NoModel
        yield field, begin, at, stop
        at = stop


def head(number: int, length: int) -> bytes:
    """What the field ``number`` begins with whose value has ``length`` bytes."""
    found = bytearray([number << 3 | LENGTH])
    while length > 127:
        found.append(length & 127 | 128)
        length >>= 7
    found.append(length)
    return bytes(found)


def _number(data: mmap | bytes | memoryview, at: int, end: int) -> tuple[int, int]:
    """(value, where it ends) of the number of variable length at ``at``."""
    value = shift = 0
    while at < end and shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise NoModel
