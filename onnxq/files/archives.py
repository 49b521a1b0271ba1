"""Zip archives that somebody else made."""

from __future__ import annotations

import os
import struct
from typing import BinaryIO

from onnxq.files.opening import size_text

# Bytes of the list of members at the end; zipfile makes objects of several times its size of all of it.
LARGEST_DIRECTORY = 4 * 2**20
_LONGEST_TAIL = 2**16 + 2**10


def check_directory(file: BinaryIO) -> None:
    """Nothing; ``ValueError`` where the list of the members of the archive ``file`` is too long to be read."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _LONGEST_TAIL))
    tail = file.read()
    # The record at the end (APPNOTE 4.3.16): signature, ..., size of the directory; at its fixed place of the one for
    # 64 bits (4.3.14), where that stands in front of it.
    at, long = tail.rfind(b"PK\x05\x06"), tail.rfind(b"PK\x06\x06")
    found = [struct.unpack_from("<L", tail, at + 12)[0]] if 0 <= at <= len(tail) - 22 else []
    found += [struct.unpack_from("<Q", tail, long + 40)[0]] if 0 <= long <= len(tail) - 56 else []
    listed = [n for n in found if n != 0xFFFFFFFF]
    if listed and max(listed) > LARGEST_DIRECTORY:
        raise ValueError(
            f"its list of members has {size_text(max(listed))}, and may have {size_text(LARGEST_DIRECTORY)}"
        )
    file.seek(0)
