"""What a Hugging Face preprocessor_config.json makes of images, against a direct computation."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from onnxq.calibrate.feeds import FeedOptions, open_feed
from onnxq.calibrate.preprocessor import read_preprocessor
from onnxq.errors import DataError
from onnxq.graph.signature import TensorSpec

F32 = np.dtype(np.float32)
NCHW = TensorSpec("pixel_values", F32, ("batch", 3, 8, 8))
DYNAMIC = TensorSpec("pixel_values", F32, ("batch", "num_channels", "height", "width"))
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
ROUNDING = 1e-6  # of float32 in scaling and normalising values of order 1


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "pictures"
    (root / "cats").mkdir(parents=True)
    picture(8, 8, 0).save(root / "a.png")
    picture(12, 20, 1).save(root / "b.bmp")
    picture(20, 12, 2).save(root / "cats" / "c.PNG")
    (root / "notes.md").write_text("not an image")
    return root


def direct(path: Path, *, mean=0.0, std=1.0, scale=1 / 255) -> np.ndarray:
    pixels = np.asarray(Image.open(path).convert("RGB"), np.float64)
    return ((pixels * scale - np.asarray(mean)) / np.asarray(std)).transpose(2, 0, 1)[None]


def write_config(folder: Path, **entries: object) -> Path:
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps(entries))
    return path


def test_vit_config(folder, tmp_path):
    config = write_config(
        tmp_path, do_resize=True, size={"height": 8, "width": 8}, resample=3,
        do_rescale=True, rescale_factor=1 / 255, do_normalize=True, image_mean=MEAN, image_std=STD,
    )  # fmt: skip
    feed = open_feed(folder, [DYNAMIC], options=FeedOptions(preprocessor=config))
    assert feed.warning is None
    for got, name in zip(feed, ("a.png", "b.bmp", "cats/c.PNG"), strict=True):
        image = Image.open(folder / name).convert("RGB").resize((8, 8), Image.Resampling.BICUBIC)
        expected = (np.asarray(image, np.float64) / 255 - MEAN) / STD
        np.testing.assert_allclose(got["pixel_values"][0], expected.transpose(2, 0, 1), atol=4 * ROUNDING)


def test_clip_config_resizes_the_shorter_edge_and_crops(folder, tmp_path):
    config = write_config(
        tmp_path, size={"shortest_edge": 10}, do_center_crop=True, crop_size={"height": 8, "width": 8},
        do_normalize=False, resample=2,
    )  # fmt: skip
    feed = open_feed(folder, [NCHW], options=FeedOptions(preprocessor=config))
    got = [f["pixel_values"] for f in feed]
    wide = Image.open(folder / "b.bmp").resize((int(10 * 20 / 12), 10), Image.Resampling.BILINEAR)
    expected = np.asarray(wide.crop((4, 1, 12, 9)), np.float64).transpose(2, 0, 1)[None] / 255
    np.testing.assert_allclose(got[1], expected, atol=ROUNDING)
    assert {g.shape for g in got} == {(1, 3, 8, 8)}


def test_convnext_config_has_an_implied_crop(tmp_path):
    options = read_preprocessor(write_config(tmp_path, size={"shortest_edge": 224}, crop_pct=0.875))
    assert (options.size, options.resize, options.crop) == ((256, 256), "shortest", (224, 224))
    options = read_preprocessor(write_config(tmp_path, size={"shortest_edge": 384}, crop_pct=0.875))
    assert (options.size, options.resize, options.crop) == ((384, 384), "exact", None)


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ({"size": 224}, {"size": (224, 224), "resize": "exact", "crop": None}),
        (
            {"size": 256, "do_center_crop": True, "crop_size": 224},
            {"size": (256, 256), "resize": "shortest", "crop": (224, 224)},
        ),
        (
            {"size": 256, "do_center_crop": True, "crop_size": 224, "feature_extractor_type": "DeiTFeatureExtractor"},
            {"size": (256, 256), "resize": "exact", "crop": (224, 224)},
        ),
        (
            {"size": 224, "do_center_crop": True, "feature_extractor_type": "LevitFeatureExtractor"},
            {"size": (256, 256), "resize": "shortest", "crop": (224, 224)},
        ),
        ({"size": {"shortest_edge": 512, "longest_edge": 1333}}, {"resize": "shortest", "longest": 1333}),
        ({"do_resize": False, "size": 9}, {"size": None, "resize": "none"}),
        ({"do_rescale": False}, {"scale": 1.0}),
        ({"do_flip_channel_order": True}, {"channels": "bgr"}),
        ({"resample": 1}, {"resample": "lanczos"}),
        ({"rescale_factor": 1 / 127.5, "rescale_offset": True}, {"mean": (1.0,), "scale": 1 / 127.5}),
        ({"image_mean": [0.5], "image_std": [0.25]}, {"mean": (0.5,), "std": (0.25,)}),
        ({"do_normalize": False, "image_mean": [0.5]}, {"mean": (0.0,)}),
    ],
)
def test_configs_as_options(tmp_path, entries, expected):
    options = read_preprocessor(write_config(tmp_path, **entries).parent)
    assert {name: getattr(options, name) for name in expected} == expected


def test_a_config_beside_the_model_or_the_images_is_found(folder, tmp_path):
    write_config(folder, image_mean=[0.5], image_std=[0.5])
    feed = open_feed(folder, [NCHW])
    assert feed.warning is None
    np.testing.assert_allclose(
        next(iter(feed))["pixel_values"], direct(folder / "a.png", mean=0.5, std=0.5), atol=ROUNDING
    )
    (tmp_path / "model").mkdir()
    write_config(tmp_path / "model", do_normalize=False)
    feed = open_feed(folder, [NCHW], options=FeedOptions(model=tmp_path / "model" / "m.onnx"))
    np.testing.assert_allclose(next(iter(feed))["pixel_values"], direct(folder / "a.png"), atol=ROUNDING)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read"),
        ("[]", "it is no JSON object"),
        ('{"do_thumbnail": true}', "asks for do_thumbnail, which onnxq does not do"),
        ('{"size": {"max": 3}}', "does not understand"),
        ('{"resample": 77}', "does not understand"),
    ],
)
def test_configs_that_cannot_be_used(tmp_path, content, message):
    (tmp_path / "preprocessor_config.json").write_text(content)
    with pytest.raises(DataError, match=message):
        read_preprocessor(tmp_path)


def test_a_config_that_is_absent(tmp_path):
    with pytest.raises(DataError, match="there is no file"):
        read_preprocessor(tmp_path / "none.json")
