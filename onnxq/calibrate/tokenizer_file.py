"""The file of a tokenizer: found, tried in a process of its own, loaded."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from onnxq.calibrate.options import FeedOptions
from onnxq.errors import DataError, one_line
from onnxq.files.opening import read_file
from onnxq.files.temporary import temporary_folder
from onnxq.runtime.child import run_child
from onnxq.runtime.trial import death

if TYPE_CHECKING:
    from tokenizers import Tokenizer

NAME = "tokenizer.json"
LARGEST_TOKENIZER = 256 << 20
WORKER = Path(__file__).resolve().with_name("tokenizer_worker.py")
# What trying it may take: bytes, and so many more for each of the file; of the processor, and of a busy day.
_MEMORY_BYTES, _TIMES = 256 << 20, 20
_SECONDS, _PATIENCE_S = 4.0, 300.0


def find_tokenizer(path: Path, options: FeedOptions) -> Path:
    """The file of the tokenizer for the texts of ``path``."""
    try:
        import tokenizers  # noqa: F401
    except ImportError as error:
        raise DataError("reading text needs tokenizers", hint="pip install 'onnxq[text]'") from error
    if options.tokenizer is not None:
        given = Path(options.tokenizer)
        found = given / NAME if os.path.isdir(given) else given
        if not os.path.exists(found):
            raise DataError(f"there is no tokenizer {found}", hint="check the path")
    else:
        places = [path.parent] + ([Path(options.model).parent] if options.model is not None else [])
        existing = [p / NAME for p in places if os.path.exists(p / NAME)]
        if not existing:
            raise DataError(
                f"{path} is text, but no {NAME} lies beside it or the model", hint="put one there or name it"
            )
        found = existing[0]
    return found


def load_tokenizer(found: Path) -> Tokenizer:
    """The tokenizer of the file ``found``. Raises ``DataError``."""
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_buffer(read_file(found, at_most=LARGEST_TOKENIZER))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # tokenizers raises bare Exception for every bad file, or panics
        raise DataError(f"{found} cannot be read as a tokenizer ({one_line(error)})", hint=f"give a {NAME}") from error


def require_tokenizer(found: Path, texts: Sequence[str], length: int) -> None:
    """Nothing; ``DataError`` where the tokenizer ``found`` cannot encode ``texts`` in a process with limits."""
    content = _content(found)
    memory, seconds = _MEMORY_BYTES + _TIMES * len(content), _SECONDS + len(content) / 10e6
    with temporary_folder() as name:
        (file := Path(name) / NAME).write_bytes(content)
        (lines := Path(name) / "texts.json").write_text(json.dumps(texts))
        try:
            arguments = [str(file), str(lines), str(length), str(memory), str(seconds)]
            done = run_child(WORKER, arguments, timeout_s=_PATIENCE_S)
        except subprocess.TimeoutExpired:
            reason = f"it did not end within {_PATIENCE_S:g} s"
        else:
            said = next((line for line in done.stdout.splitlines() if line.startswith("{")), None)
            if said is None and done.returncode == 0:
                return
            reason = json.loads(said)["why"] if said is not None else death(done, seconds)
    raise DataError(
        f"{found} cannot be read as a tokenizer, or not encode the longest lines ({reason})",
        hint=f"give the {NAME} that belongs to the model with --tokenizer, or shorter lines",
    )


def _content(found: Path) -> bytes:
    try:
        return read_file(found, at_most=LARGEST_TOKENIZER)
    except OSError as error:
        raise DataError(f"{found} cannot be read as a tokenizer ({one_line(error)})", hint=f"give a {NAME}") from error
