"""Files that are traps, as model, data and configuration: one line, exit code 2, within 10 s and 500 MB."""

from __future__ import annotations

import json
import os
import pickle
import socket
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import toys
from limited import MEMORY_BYTES, SECONDS, Limited
from onnx import TensorProto
from zoo import Net

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits and peaks of memory are those of Linux")

Make = Callable[[Path], tuple[object, ...]]  # makes files in a folder and returns what comes behind ``quantize``


@pytest.fixture(scope="module")
def limited() -> Iterator[Limited]:
    with Limited() as run:
        yield run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    toys.write(toys.classifier(), tmp_path / "net.onnx")
    np.savez(tmp_path / "data.npz", image=toys.images(16))
    return tmp_path


def refused(limited: Limited, folder: Path, *arguments: object) -> str:
    """What is said of a command that must refuse: two lines at most, no half-written file."""
    before = {p.name for p in folder.rglob("*")}
    done = limited(folder, "quantize", *arguments)
    assert done.code == 2, (done.code, done.stderr[-2000:])
    assert done.stdout == ""
    line, *hint = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert [text.partition(":")[0] for text in hint] in ([], ["hint"])
    assert "bug" not in line
    assert "Traceback" not in done.stderr
    assert done.peak_bytes < MEMORY_BYTES
    assert done.seconds < SECONDS
    assert {p.name for p in folder.rglob("*")} == before
    return done.stderr


# What is no regular file, in every place where a file is read or written.


def pipe(path: Path) -> None:
    os.mkfifo(path)


def link_to_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def link_to_proc(path: Path) -> None:
    path.symlink_to("/proc/self/environ")


def unix_socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # the name of a socket is short
    try:
        socket.socket(socket.AF_UNIX).bind(path.name)
    finally:
        os.chdir(here)


KINDS = (link_to_device, link_to_proc, unix_socket)
PLACES: dict[str, tuple[object, ...]] = {
    "x.onnx": ("x.onnx",),
    "x.npz": ("net.onnx", "-c", "x.npz"),
    "x.npy": ("net.onnx", "-c", "x.npy"),
    "x.png": ("net.onnx", "-c", "x.png"),
    "x.txt": ("text.onnx", "-c", "x.txt", "--tokenizer", "tokenizer.json"),
    "x.jsonl": ("text.onnx", "-c", "x.jsonl", "--tokenizer", "tokenizer.json"),
    "x": ("net.onnx", "-c", "x"),
    "x.toml": ("net.onnx", "-c", "data.npz", "--config", "x.toml"),
    "x.json": ("net.onnx", "-c", "photos", "--preprocessor", "x.json"),
    "preprocessor_config.json": ("net.onnx", "-c", "photos"),
    "tok.json": ("text.onnx", "-c", "lines.txt", "--tokenizer", "tok.json"),
    "photos/x.png": ("net.onnx", "-c", "photos"),
    "arrays/x.npz": ("net.onnx", "-c", "arrays"),
    "out.onnx": ("net.onnx", "-c", "data.npz", "-o", "out.onnx"),
    "out.toml": ("net.onnx", "-c", "data.npz", "--save-config", "out.toml"),
    "net.calib.npz": ("net.onnx", "-q"),
}


@pytest.mark.parametrize(
    ("place", "make"),
    [
        *((place, pipe) for place in PLACES),
        *((place, make) for place in ("x.onnx", "x.npz", "x.txt", "photos/x.png") for make in KINDS),
    ],
)
def test_what_is_no_regular_file_is_refused_at_once(
    limited: Limited, folder: Path, place: str, make: Callable[[Path], None]
) -> None:
    photos(folder / "photos")
    text_model(folder)
    (folder / "arrays").mkdir()
    np.save(folder / "arrays" / "a.npy", toys.images(1)[0])
    make(folder / place)
    said = refused(limited, folder, *PLACES[place])
    assert "not a" in said
    assert "file" in said


def photos(folder: Path, count: int = 4) -> Path:
    from PIL import Image

    folder.mkdir(exist_ok=True)
    for i, pixels in enumerate(np.random.default_rng(0).integers(0, 255, (count, 16, 16, 3), np.uint8)):
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


def text_model(folder: Path, **tokenizer: object) -> None:
    """A model of tokens, lines of text and a tokenizer of words with the fields ``tokenizer`` set."""
    n = Net()
    n("Gather", n.weight("table", 50, 16), "input_ids", name="rows")
    n.linear("rows_out", 16, 16, name="layer", out="y")
    inputs = {"input_ids": (TensorProto.INT64, ["batch", "seq"])}
    toys.write(n.model(inputs, {"y": ["batch", "seq", 16]}), folder / "text.onnx")
    (folder / "lines.txt").write_text("a b c\n" * 8)
    words = {"type": "WordLevel", "vocab": {"[UNK]": 0, "a": 1, "b": 2}, "unk_token": "[UNK]"}
    keys = ("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder")
    content = {"version": "1.0", "added_tokens": [], **dict.fromkeys(keys), "model": words, **tokenizer}
    (folder / "tokenizer.json").write_text(json.dumps(content))


# Data that unpacks to far more than it weighs, or promises what it does not hold.


def header(shape: tuple[int, ...], *, descr: str = "'<f4'", fortran: bool = False) -> bytes:
    """The beginning of an .npy, with anything for its type."""
    text = f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}".encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def sparse(path: Path, start: bytes, size: int) -> Path:
    """A file of ``size`` bytes that take no room on the disk: ``start``, then zeros."""
    with path.open("wb") as file:
        file.write(start)
        file.truncate(size)
    return path


def zipped(path: Path, name: str, start: bytes, zeros: int) -> Path:
    """An archive with one compressed member: ``start``, then so many zeros."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive, archive.open(name, "w") as entry:
        entry.write(start)
        for _ in range(zeros >> 20):
            entry.write(bytes(1 << 20))
    return path


def compressed_bomb(folder: Path) -> tuple[object, ...]:
    rows = 1 << 20
    return "net.onnx", "-c", zipped(folder / "b.npz", "image.npy", header((rows, 3, 8, 8)), rows * 768)


def one_row_bomb(folder: Path) -> tuple[object, ...]:
    return "net.onnx", "-c", zipped(folder / "b.npz", "image.npy", header((1, 3, 8, 1 << 23)), 3 << 28)


def fortran_order(folder: Path) -> tuple[object, ...]:
    shape = (1 << 21, 3, 8, 8)
    start = header(shape, fortran=True)
    return "net.onnx", "-c", sparse(folder / "b.npy", start, len(start) + 4 * (192 << 21))


def promises(shape: tuple[int, ...]) -> Make:
    def make(folder: Path) -> tuple[object, ...]:
        (folder / "b.npy").write_bytes(header(shape) + bytes(4096))
        return "net.onnx", "-c", "b.npy"

    return make


def promises_in_an_archive(folder: Path) -> tuple[object, ...]:
    return "net.onnx", "-c", zipped(folder / "b.npz", "image.npy", header((1 << 50, 3, 8, 8)), 0)


def starts_with(start: bytes) -> Make:
    def make(folder: Path) -> tuple[object, ...]:
        (folder / "b.npy").write_bytes(start)
        return "net.onnx", "-c", "b.npy"

    return make


def many_members(folder: Path) -> tuple[object, ...]:
    with zipfile.ZipFile(folder / "b.npz", "w") as archive:
        for i in range(5_000):
            archive.writestr(f"array_{i}.npy", header((1,)) + bytes(4))
    return "net.onnx", "-c", "b.npz"


def long_directory(folder: Path) -> tuple[object, ...]:
    """The end record of an archive whose list of members is 3 GB long."""
    tail = b"PK\x05\x06" + struct.pack("<HHHHLLH", 0, 0, 0xFFFF, 0xFFFF, 3 << 30, 0, 0)
    path = sparse(folder / "b.npz", b"", 3 << 30)
    with path.open("ab") as file:
        file.write(tail)
    return "net.onnx", "-c", path


class Trap:
    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, ("was run",)


def pickled(suffix: str) -> Make:
    def make(folder: Path) -> tuple[object, ...]:
        (folder / "b.npy").write_bytes(header((1,), descr="'|O'") + pickle.dumps(np.array([Trap()], object)))
        if suffix == ".npz":
            with zipfile.ZipFile(folder / "b.npz", "w") as archive:
                archive.write(folder / "b.npy", "image.npy")
        return "net.onnx", "-c", f"b{suffix}"

    return make


def long_line(suffix: str) -> Make:
    def make(folder: Path) -> tuple[object, ...]:
        text_model(folder)
        (folder / f"b{suffix}").write_text('{"text": "' + "a " * (50 << 20) + '"}\n')
        return "text.onnx", "-c", f"b{suffix}"

    return make


def line(content: str) -> Make:
    def make(folder: Path) -> tuple[object, ...]:
        text_model(folder)
        (folder / "b.jsonl").write_text(content + "\n")
        return "text.onnx", "-c", "b.jsonl"

    return make


def many_lines(folder: Path) -> tuple[object, ...]:
    text_model(folder)
    (folder / "b.txt").write_text("a\n" * 11_000_000)
    return "text.onnx", "-c", "b.txt"


def tokenizer(**fields: object) -> Make:
    def make(folder: Path) -> tuple[object, ...]:
        text_model(folder, **fields)
        (folder / "lines.txt").write_text("a" * 5000 + "b\n")
        return "text.onnx", "-c", "lines.txt"

    return make


def split_by(pattern: str) -> dict[str, object]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def longer(times: int) -> dict[str, object]:
    """A normalizer that makes every a so many times a thousand."""
    one = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 1000}
    return {"type": "Sequence", "normalizers": [one] * times}


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int) -> bytes:
    """A picture of one colour, which packs well: only its size is large."""
    start = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    rows = zlib.compress(bytes((1 + (width + 7) // 8) * min(height, 1000)), 9)
    return b"\x89PNG\r\n\x1a\n" + start + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def picture(content: bytes) -> Make:
    def make(folder: Path) -> tuple[object, ...]:
        (folder / "b.png").write_bytes(content)
        return "net.onnx", "-c", "b.png"

    return make


def preprocessor(text: str) -> Make:
    def make(folder: Path) -> tuple[object, ...]:
        photos(folder / "photos")
        (folder / "p.json").write_text(text)
        return "net.onnx", "-c", "photos", "--preprocessor", "p.json"

    return make


def configuration(text: str) -> Make:
    def make(folder: Path) -> tuple[object, ...]:
        (folder / "c.toml").write_text(text)
        return "net.onnx", "-c", "data.npz", "--config", "c.toml"

    return make


def function(body: str) -> Make:
    def make(folder: Path) -> tuple[object, ...]:
        (folder / "mine.py").write_text(f"import sys\ndef feeds():\n    {body}\n    yield {{}}\n")
        return "net.onnx", "-c", "mine.py:feeds"

    return make


DEEP = 100_000
DATA: dict[str, tuple[Make, str]] = {
    "compressed bomb": (compressed_bomb, "would unpack to"),
    "one row bomb": (one_row_bomb, "would unpack to"),
    "fortran order": (fortran_order, "numpy.ascontiguousarray"),
    "promises 2^60": (promises((1 << 60,)), "holds fewer"),
    "promises 2^60 rows": (promises((1 << 60, 3, 8, 8)), "holds fewer"),
    "promises rows of nothing": (promises((1 << 60, 0, 8, 8)), "of nothing"),
    "negative shape": (promises((-1, 3, 8, 8)), "cannot be read"),
    "huge numbers": (promises((10**30, 10**30)), "cannot be read"),
    "promises in an archive": (promises_in_an_archive, "holds fewer"),
    "half a header": (starts_with(header((1,)).replace(b"}", b" ")), "cannot be read"),
    "a header of brackets": (
        starts_with(b"\x93NUMPY\x01\x00" + struct.pack("<H", 9000) + b"(" * 9000),
        "cannot be read",
    ),
    "a header of a name": (starts_with(header((1,), descr="__import__('os')")), "cannot be read"),
    "a header of records": (starts_with(header((1,), descr="[('a', '<f4')]") + bytes(4)), "error"),
    "many members": (many_members, "5000 arrays, and may hold 1000"),
    "long directory": (long_directory, "list of members"),
    "pickled .npy": (pickled(".npy"), "error"),
    "pickled .npz": (pickled(".npz"), "error"),
    "long line": (long_line(".txt"), "line 1 has more than"),
    "long line of JSON": (long_line(".jsonl"), "line 1 has more than"),
    "deep line": (line("[" * DEEP), "is not JSON"),
    "deep object": (line('{"text": ' * DEEP), "is not JSON"),
    "lone surrogate": (line(r'{"text": "\ud800"}'), "cannot be read as a tokenizer, or not encode"),
    "many digits": (line('{"text": ' + "1" * 5000 + "}"), "is not JSON"),
    "many lines": (many_lines, "more than 10,000,000 lines"),
    "expression without end": (tokenizer(pre_tokenizer=split_by("(a+)+$")), "retry-limit"),
    "expression of a line": (tokenizer(pre_tokenizer=split_by(r"(a|aa)+\1c")), "cannot be read as a tokenizer"),
    "normalizer of gigabytes": (tokenizer(normalizer=longer(3)), "cannot be read as a tokenizer"),
    "normalizer without end": (tokenizer(normalizer=longer(2)), "cannot be read as a tokenizer"),
    "bad expression": (tokenizer(pre_tokenizer=split_by("(")), "as a tokenizer"),
    "deep tokenizer": (tokenizer(decoder=json.loads("[" * 500 + "]" * 500)), "as a tokenizer"),
    "large picture": (picture(png(30_000, 30_000)), "pixels"),
    "picture over the limit": (picture(png(9_000, 9_000)), "pixels"),
    "picture below a warning": (picture(png(12_000, 12_000)), "pixels"),
    "cut picture": (picture(png(100, 100)[:50]), "cannot be read"),
    "no picture": (picture(b"\x89PNG\r\n\x1a\n"), "cannot be read"),
    "deep preprocessor": (preprocessor("[" * DEEP), "cannot be read"),
    "deep preprocessor object": (preprocessor('{"size": ' * DEEP), "cannot be read"),
    "huge size": (preprocessor('{"size": 1000000000}'), "error"),
    "huge size of a pair": (preprocessor('{"size": {"height": 1e30, "width": 1e30}}'), "error"),
    "infinite size": (preprocessor('{"size": {"height": Infinity, "width": 3}}'), "does not understand"),
    "nan size": (preprocessor('{"size": NaN}'), "does not understand"),
    "empty size": (preprocessor('{"size": []}'), "does not understand"),
    "size of lists": (preprocessor('{"size": [[1], [2]]}'), "does not understand"),
    "no pixels": (preprocessor('{"size": 0}'), "error"),
    "crop of nothing": (preprocessor('{"crop_pct": 0, "size": {"shortest_edge": 32}}'), "does not understand"),
    "crop of little": (preprocessor('{"crop_pct": 1e-300, "size": {"shortest_edge": 32}}'), "error"),
    "infinite crop": (preprocessor('{"crop_pct": Infinity, "size": {"shortest_edge": 32}}'), "error"),
    "huge crop": (preprocessor('{"do_center_crop": true, "crop_size": 1000000}'), "error"),
    "longest of nothing": (preprocessor('{"size": {"shortest_edge": 32, "longest_edge": -1}}'), "error"),
    "infinite factor": (preprocessor('{"rescale_factor": Infinity}'), "finite"),
    "huge resample": (preprocessor('{"resample": 1e400}'), "does not understand"),
    "mean of nothing": (preprocessor('{"image_mean": []}'), "error"),
    "deviation of 0": (preprocessor('{"image_mean": 0.5, "image_std": 0}'), "std none that is 0"),
    "deep configuration": (configuration("a = " + "[" * DEEP), "not valid TOML"),
    "deep table": (configuration("a = " + "{a = " * DEEP), "not valid TOML"),
    "huge number": (configuration("samples = " + "9" * 5000), "not valid TOML"),
    "bytes": (configuration("\0"), "not valid TOML"),
    "function that exits": (function("sys.exit(0)"), "SystemExit"),
    "function that ends": (function("raise GeneratorExit"), "GeneratorExit"),
    "function without end": (function("raise RecursionError"), "RecursionError"),
}


@pytest.mark.parametrize("case", DATA)
def test_data_that_is_a_trap(limited: Limited, folder: Path, case: str) -> None:
    make, says = DATA[case]
    arguments = make(folder)
    assert says in refused(limited, folder, *arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        ("{}",),
        ("net.onnx", "-c", "{}"),
        ("net.onnx", "-c", "{}.npz"),
        ("net.onnx", "-c", "{}.py:f"),
        ("net.onnx", "-c", "{}:f"),
        ("net.onnx", "-c", "data.npz", "-o", "{}"),
        ("net.onnx", "-c", "data.npz", "-o", "{}/out.onnx"),
        ("net.onnx", "-c", "data.npz", "--config", "{}"),
        ("net.onnx", "-c", "data.npz", "--save-config", "{}"),
        ("net.onnx", "-c", "photos", "--preprocessor", "{}"),
        ("text.onnx", "-c", "lines.txt", "--tokenizer", "{}"),
    ],
)
def test_names_of_5000_characters(limited: Limited, folder: Path, arguments: tuple[str, ...]) -> None:
    photos(folder / "photos")
    text_model(folder)
    refused(limited, folder, *(a.format("x" * 5000) for a in arguments))


def test_the_longest_name_that_can_be_written(limited: Limited, folder: Path) -> None:
    done = limited(folder, "quantize", "net.onnx", "-c", "data.npz", "--latency", 0, "-q", "-o", "x" * 245 + ".onnx")
    assert done.code in (0, 3), done.stderr
    assert (folder / ("x" * 245 + ".onnx")).exists()


def test_only_the_formats_of_pictures_are_opened(
    limited: Limited, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For an EPS file Pillow starts Ghostscript, whichever is found first."""
    from PIL import features

    assert features.check("webp") in (True, False)
    picture(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n")(folder)
    for name in ("gs", "gswin64c"):
        (folder / name).write_text(f"#!/bin/sh\ntouch '{folder}/was run'\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    from onnxq.calibrate.images import load_image
    from onnxq.calibrate.options import ImageOptions
    from onnxq.errors import DataError

    with pytest.raises(DataError, match="cannot be read"):
        load_image(folder / "b.png", ImageOptions(), channels=3)
    assert not (folder / "was run").exists()


@pytest.mark.parametrize("format", ["PNG", "JPEG", "BMP", "WEBP"])
@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_pictures_are_read_whatever_they_are_called(tmp_path: Path, format: str, suffix: str) -> None:
    from PIL import Image

    from onnxq.calibrate.images import load_image
    from onnxq.calibrate.options import ImageOptions

    path = tmp_path / f"a{suffix}"
    Image.new("RGB", (9, 7), (200, 30, 90)).save(path, format=format)
    pixels = load_image(path, ImageOptions(), channels=3)
    assert pixels.shape == (7, 9, 3)
    np.testing.assert_allclose(pixels.mean(axis=(0, 1)), (200, 30, 90), atol=6)
