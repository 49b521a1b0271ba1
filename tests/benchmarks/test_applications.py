"""What applications are judged by, and what their models are made of, on small inputs with known answers."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from apps import base, boxes, captchas, photographs, speakers, super_resolution

RNG = np.random.default_rng(31)
SQUARES = np.array([[0, 0, 10, 10], [20, 20, 30, 30], [40, 0, 50, 20]], np.float64)


def found(places: np.ndarray, scores: list[float], classes: list[int]) -> boxes.Found:
    return boxes.Found(places, np.array(scores), np.array(classes))


def test_overlap_of_shifted_squares() -> None:
    assert boxes.overlap(SQUARES[:1], SQUARES[:1] + np.array([5, 0, 5, 0]))[0, 0] == pytest.approx(50 / 150)
    assert boxes.overlap(SQUARES[:1], SQUARES[1:])[0].tolist() == [0, 0]


def test_surer_box_suppresses_what_it_covers() -> None:
    left = boxes.suppressed(found(np.vstack([SQUARES[:1] + 1, SQUARES[:2]]), [0.4, 0.9, 0.3], [0, 0, 1]), 0.45)
    assert left.scores.tolist() == [0.9, 0.3]


def test_match_is_one_to_one_and_of_the_same_class() -> None:
    wanted = found(SQUARES, [0.9, 0.8, 0.7], [0, 1, 0])
    got = found(np.vstack([SQUARES[:1], SQUARES]), [0.9, 0.8, 0.7, 0.6], [0, 0, 0, 0])
    assert boxes.matches(wanted, got, 0.5).tolist() == [0, -1, -1, 2]


def test_same_detections_lose_nothing_even_with_boxes_below_the_threshold() -> None:
    seen = found(SQUARES, [0.9, 0.5, 0.1], [0, 1, 2])
    figures = boxes.detection_figures([seen], [seen], 0.25)
    assert (figures["loss"], figures["ap_50_95"], figures["f1"], figures["surest_lost"]) == (0, 100, 100, 0)
    assert figures["boxes_float"] == 2


def test_lost_box_costs_its_share_and_is_reported_with_its_score() -> None:
    seen = found(SQUARES, [0.9, 0.8, 0.7], [0, 1, 2])
    rest = found(SQUARES[::2], [0.6, 0.7], [0, 2])
    figures = boxes.detection_figures([seen], [rest], 0.25)
    assert figures["loss"] == pytest.approx(100 / 3, abs=0.01)
    assert (figures["surest_lost"], figures["largest_gap"]) == (0.8, 0.3)


def test_wrong_box_that_is_surest_costs_precision() -> None:
    seen = found(SQUARES[:1], [0.9], [0])
    wrong_first = found(SQUARES[1::-1], [0.9, 0.8], [0, 0])
    assert boxes.average_precision([seen], [wrong_first], 0.5) == 0.5
    assert boxes.average_precision([seen], [found(SQUARES[:2], [0.9, 0.8], [0, 0])], 0.5) == 1.0


def test_calibration_and_test_photographs_are_apart(tmp_path: Path) -> None:
    for i in range(7):
        photographs.Image.new("RGB", (40 + i, 30)).save(tmp_path / f"{i}.png")
    source = ((lambda _: tmp_path, "a package", ".", "*.png"),)
    halves = [{p.size for p in photographs.photographs(source, half)} for half in ("calib", "test")]
    assert not halves[0] & halves[1]
    assert len(halves[0] | halves[1]) == 7
    cut = list(photographs.squares(source, "test", 9, 16, share=(0.5, 1.0), seed=1))
    assert {square.shape for square in cut} == {(16, 16, 3)}


def test_download_that_fails_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(base.CACHE_VARIABLE, str(tmp_path))

    def unpack(file: Path, folder: Path) -> None:
        folder.mkdir()
        (folder / "half").write_bytes(file.read_bytes())
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        base.unpacked("kind", "@a/b", lambda folder: (folder / "file").touch(), unpack)
    assert list(tmp_path.rglob("half")) == []
    assert not (tmp_path / "kind" / "@a+b").exists()


def test_repeats_are_joined_unless_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captchas, "characters", lambda: ["", "A", "b"])
    assert captchas.decode(np.array([0, 1, 1, 0, 1, 2, 2, 0])) == "aab"


def test_tone_peaks_in_its_mel_band() -> None:
    tone = np.rint(8000 * np.sin(2 * np.pi * 1000 * np.arange(16000) / 16000)).astype(np.int16)
    bins = np.fft.rfftfreq(speakers.WINDOW, 1 / speakers.RATE)
    middles = (speakers.filters() @ bins) / speakers.filters().sum(1)
    band = int(speakers.spectrogram(tone).mean(0).argmax())
    assert abs(middles[band] - 1000) < 60
    assert np.diff(middles).min() > 0


def test_short_recording_is_one_piece_and_a_long_one_overlapping() -> None:
    assert speakers.pieces(np.ones((90, 40), np.float32)).shape == (1, 160, 40)
    cut = speakers.pieces(np.repeat(np.arange(400, dtype=np.float32)[:, None], 40, 1))
    assert [int(piece[0, 0]) for piece in cut] == [0, 80, 160, 240]


def test_layers_for_the_browser_are_written_as_onnx(tmp_path: Path) -> None:
    kernel = RNG.normal(size=(3, 3, 3, 4)).astype(np.float32)
    mixed = RNG.normal(size=(1, 1, 8, 3)).astype(np.float32)
    values = {"a/kernel": kernel, "a/bias": RNG.normal(size=4).astype(np.float32)}
    values |= {"m/kernel": mixed, "m/bias": np.zeros(3, np.float32)}
    layers = [
        ("InputLayer", {"name": "in"}, []),
        ("Conv2D", {"name": "a", "kernel_size": [3, 3]}, ["in"]),
        ("Activation", {"name": "b"}, ["a"]),
        ("Concatenate", {"name": "c"}, ["a", "b"]),
        ("Add", {"name": "d"}, ["c", "c"]),
        ("Conv2D", {"name": "m", "kernel_size": [1, 1]}, ["d"]),
        ("UpSampling2D", {"name": "e", "size": [2, 2]}, ["m"]),
    ]
    described = [
        {"class_name": kind, "config": config, "inbound_nodes": [[[name, 0, 0, {}] for name in inputs]]}
        for kind, config, inputs in layers
    ]
    network = {"layers": described, "input_layers": [["in", 0, 0]], "output_layers": [["e", 0, 0]]}
    entries = [{"name": name, "shape": list(value.shape)} for name, value in values.items()]
    (tmp_path / "w.bin").write_bytes(b"".join(value.tobytes() for value in values.values()))
    text = {"modelTopology": {"model_config": {"config": network}}}
    text["weightsManifest"] = [{"paths": ["w.bin"], "weights": entries}]  # type: ignore[assignment]
    (tmp_path / "model.json").write_text(json.dumps(text))

    # One input channel bright at one pixel: the convolution shows its kernel, mirrored, around it.
    image = np.zeros((1, 5, 6, 3), np.float32)
    image[0, 2, 3, 1] = 2.0
    made = super_resolution.converted(tmp_path).SerializeToString()
    session = onnxruntime.InferenceSession(made, providers=["CPUExecutionProvider"])
    larger = session.run(None, {"image": image})[0]
    convolved = np.zeros((5, 6, 4), np.float32) + values["a/bias"]
    convolved[1:4, 2:5] += 2 * kernel[::-1, ::-1, 1]
    wanted = 2 * np.concatenate([convolved, np.maximum(convolved, 0)], axis=2) @ mixed[0, 0]
    np.testing.assert_allclose(larger[0], wanted.repeat(2, 0).repeat(2, 1), rtol=1e-4, atol=1e-4)


def test_worst_block_is_seen_where_the_mean_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    side = super_resolution.SIDE * super_resolution.SCALE
    before = np.full((2, side, side, 3), 100, np.uint8)
    after = before.copy()
    after[1, :16, 16:32] += 51
    monkeypatch.setattr(super_resolution, "pictures", lambda half: ([], list(before)))
    figures = super_resolution.compare({"pictures": before}, {"pictures": after})
    assert figures["worst_block"] == pytest.approx(20.0)
    assert figures["worst_pixel"] == 51
    assert figures["loss"] < 2
