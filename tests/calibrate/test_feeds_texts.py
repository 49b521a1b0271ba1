"""Feeds from text files through a tokenizer made on the spot."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from onnxq.calibrate.feeds import FeedOptions, open_feed
from onnxq.errors import DataError
from onnxq.graph.signature import TensorSpec

I64, I32, F32 = np.dtype(np.int64), np.dtype(np.int32), np.dtype(np.float32)
WORDS = {"[PAD]": 7, "[CLS]": 0, "[SEP]": 1, "[UNK]": 2, "one": 3, "two": 4, "three": 5, "four": 6}


def specs(*names: str, length: int | str = "seq", batch: int | str = "batch") -> list[TensorSpec]:
    return [TensorSpec(name, I64, (batch, length)) for name in names]


BERT = specs("input_ids", "attention_mask", "token_type_ids")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    tokenizer = Tokenizer(models.WordLevel(WORDS, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 0), ("[SEP]", 1)]
    )
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    path = tmp_path / "texts.txt"
    path.write_text("one two\n\nthree\r\n  \none two three four\n")
    return path


def test_lines_become_tokens(text):
    feed = open_feed(text, BERT)
    got = list(feed)
    assert [f["input_ids"].tolist() for f in got] == [[[0, 3, 4, 1]], [[0, 5, 1]], [[0, 3, 4, 5, 6, 1]]]
    assert all((f["attention_mask"] == 1).all() and (f["token_type_ids"] == 0).all() for f in got)
    assert all(a.dtype == np.int64 and a.flags.c_contiguous for f in got for a in f.values())
    assert (feed.samples, feed.len_hint) == (3, 3)
    assert feed.description == "texts.txt, 3 texts of at most 512 tokens by tokenizer.json"


def test_batches_are_padded_to_their_longest(text):
    first, last = open_feed(text, BERT, options=FeedOptions(batch_size=2))
    assert first["input_ids"].tolist() == [[0, 3, 4, 1], [0, 5, 1, 7]]
    assert first["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
    assert last["input_ids"].shape == (1, 6)


def test_a_fixed_length_pads_and_truncates(text):
    feed = open_feed(text, specs("input_ids", "attention_mask", "position_ids", length=5, batch=1))
    got = [f["input_ids"].tolist() for f in feed]
    assert got == [[[0, 3, 4, 1, 7]], [[0, 5, 1, 7, 7]], [[0, 3, 4, 5, 1]]]
    assert next(iter(feed))["attention_mask"].tolist() == [[1, 1, 1, 1, 0]]
    options = FeedOptions(pad_id=2)
    assert next(iter(open_feed(text, specs("input_ids", length=5), options=options)))["input_ids"][0, -1] == 2


def test_max_length_truncates(text):
    feed = open_feed(text, BERT, options=FeedOptions(max_length=4))
    assert [f["input_ids"].shape[1] for f in feed] == [4, 3, 4]


def test_the_tokenizers_own_padding_and_truncation_give_way(text):
    tokenizer = Tokenizer.from_file(str(text.parent / "tokenizer.json"))
    tokenizer.enable_padding(length=50, pad_id=6, pad_type_id=1)
    tokenizer.enable_truncation(3)
    tokenizer.save(str(text.parent / "tokenizer.json"))
    first, _ = open_feed(text, BERT, options=FeedOptions(batch_size=2))
    assert first["input_ids"].tolist() == [[0, 3, 4, 1], [0, 5, 1, 6]]
    assert first["token_type_ids"].tolist() == [[0, 0, 0, 0], [0, 0, 0, 1]]


def test_inputs_of_other_names_and_kinds(text):
    (first, *_) = open_feed(text, [TensorSpec("tokens", I32, ("batch", "seq"))])
    assert first["tokens"].dtype == np.int32
    (first, *_) = open_feed(text, [TensorSpec("ids", I64, ("seq",))], options=FeedOptions(batch_size=9))
    assert first["ids"].tolist() == [0, 3, 4, 1]
    inputs = [TensorSpec("input_ids:0", I64, (None, None)), TensorSpec("input_mask:0", F32, (None, None))]
    (first, *_) = open_feed(text, inputs)
    assert first["input_mask:0"].dtype == np.float32
    (first, *_) = open_feed(text, specs("input_ids", "position_ids"))
    assert first["position_ids"].tolist() == [[0, 1, 2, 3]]


def test_jsonl(text):
    path = text.parent / "data.jsonl"
    path.write_text("\n".join(json.dumps({"body": t, "n": 1}) for t in ("one", "two three")))
    feed = open_feed(path, BERT, options=FeedOptions(text_field="body"))
    assert [f["input_ids"].tolist() for f in feed] == [[[0, 3, 1]], [[0, 4, 5, 1]]]
    with pytest.raises(DataError, match=r"no text under 'text' \(it has 'body', 'n'\)"):
        list(open_feed(path, BERT))
    path.write_text('{"text": "one"}\n{"text": \n')
    with pytest.raises(DataError, match=r"line at sample 1 of data.jsonl is not JSON"):
        list(open_feed(path, BERT))


def test_where_the_tokenizer_is_found(text, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "data").mkdir()
    moved = tmp_path / "model" / "tokenizer.json"
    (tmp_path / "tokenizer.json").rename(moved)
    alone = tmp_path / "data" / "texts.txt"
    alone.write_text("one\n")
    with pytest.raises(DataError, match=r"no tokenizer.json lies beside it or the model"):
        open_feed(alone, BERT)
    for options in (
        FeedOptions(model=tmp_path / "model" / "m.onnx"),
        FeedOptions(tokenizer=moved),
        FeedOptions(tokenizer=str(moved.parent)),
    ):
        assert open_feed(alone, BERT, options=options).samples == 1
    with pytest.raises(DataError, match="there is no tokenizer"):
        open_feed(alone, BERT, options=FeedOptions(tokenizer=tmp_path / "data"))
    moved.write_text("{}")
    with pytest.raises(DataError, match="cannot be read as a tokenizer"):
        open_feed(alone, BERT, options=FeedOptions(tokenizer=moved))


def test_lines_are_read_when_reached(text):
    feed = open_feed(text, BERT)
    iterator = iter(feed)
    next(iterator)
    size = text.stat().st_size
    text.write_bytes(b"one two\n" + b"\xff" * (size - 8))
    with pytest.raises(DataError, match=r"line at sample 1 of texts\.txt is not UTF-8"):
        next(iterator)


def test_split_of_texts(text):
    rest, held = open_feed(text, BERT).split(1)
    lengths = [f["input_ids"].shape[1] for part in (rest, held) for f in part]
    assert sorted(lengths) == [3, 4, 6]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([*BERT, TensorSpec("past.0", F32, ("batch", 2, "past", 4))], "cannot fill the input past.0"),
        ([TensorSpec("x", F32, ("batch", "seq"))], "cannot fill the input x"),
        ([TensorSpec("x", I64, ("batch", "seq", 3))], "cannot fill the input x"),
        ([*specs("input_ids", length=4), *specs("attention_mask", length=5)], "different lengths"),
    ],
)
def test_models_that_take_no_text(text, inputs, message):
    with pytest.raises(DataError, match=message):
        open_feed(text, inputs)


def test_empty_text(text):
    text.write_text("\n \n")
    with pytest.raises(DataError, match="is empty; give a text a line"):
        open_feed(text, BERT)


def test_tokenizers_is_missing(text, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(DataError, match=r"pip install 'onnxq\[text\]'"):
        open_feed(text, BERT)
