"""The process in which a tokenizer is tried: a script with the arguments ``TOKENIZER TEXTS.json LENGTH BYTES SECONDS``.

It loads the tokenizer and encodes each text, and prints one line of JSON with the reason ``why`` it cannot. A regular
expression may take for ever or end in a panic, and a normalizer may make a gigabyte of a line.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tokenizers import Tokenizer

from onnxq.errors import one_line
from onnxq.runtime.limits import limit_memory, limit_processor


def main(file: Path, texts: Path, length: int, memory: int, seconds: float) -> None:
    limit_memory(memory)
    limit_processor(seconds)
    try:
        tokenizer = Tokenizer.from_buffer(file.read_bytes())
        tokenizer.no_padding()
        tokenizer.enable_truncation(max_length=length)
        for text in json.loads(texts.read_text()):
            tokenizer.encode(text)
    except BaseException as error:  # a panic of Rust is no Exception
        print(json.dumps({"why": one_line(error)}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), float(sys.argv[5]))
