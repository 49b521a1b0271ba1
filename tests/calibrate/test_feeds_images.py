"""Feeds from folders of images."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from onnxq.calibrate import images as images_module
from onnxq.calibrate.feeds import FeedOptions, ImageOptions, open_feed
from onnxq.errors import ConfigError, DataError
from onnxq.graph.signature import TensorSpec

F32, U8 = np.dtype(np.float32), np.dtype(np.uint8)
NCHW = TensorSpec("pixel_values", F32, ("batch", 3, 8, 8))
DYNAMIC = TensorSpec("pixel_values", F32, ("batch", "num_channels", "height", "width"))
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


def test_a_folder_of_images_is_searched_and_resized(folder):
    feed = open_feed(folder, [NCHW])
    got = [f["pixel_values"] for f in feed]
    assert [g.shape for g in got] == [(1, 3, 8, 8)] * 3
    assert all(g.dtype == np.float32 and g.flags.c_contiguous for g in got)
    assert (feed.samples, feed.len_hint) == (3, 3)
    assert feed.description == "pictures/, 3 images (8x8, exact resize)"
    assert feed.warning is not None
    assert "without mean and std" in feed.warning
    np.testing.assert_allclose(got[0], direct(folder / "a.png"), atol=ROUNDING)
    resized = np.asarray(Image.open(folder / "b.bmp").resize((8, 8), Image.Resampling.BILINEAR), np.float32)
    np.testing.assert_allclose(got[1][0], resized.transpose(2, 0, 1) / 255, atol=ROUNDING)


def test_images_are_decoded_only_when_reached(folder, monkeypatch):
    loaded: list[str] = []
    real = images_module.load_image
    monkeypatch.setattr(
        images_module, "load_image", lambda path, *a, **k: loaded.append(path.name) or real(path, *a, **k)
    )
    feed = open_feed(folder, [NCHW])
    assert loaded == []
    next(iter(feed))
    assert loaded == ["a.png"]
    loaded.clear()
    rest, held = feed.split(1)
    assert len(list(held)) == 1
    assert len(loaded) == 1
    assert len(list(rest)) == 2


def test_one_image_file(folder):
    assert open_feed(folder / "a.png", [NCHW]).samples == 1


def test_batches_of_images(folder):
    assert [f["pixel_values"].shape[0] for f in open_feed(folder, [NCHW], options=FeedOptions(batch_size=2))] == [2, 1]
    # Where the model leaves height and width open every image keeps its own, so neighbours differ.
    got = open_feed(folder, [DYNAMIC], options=FeedOptions(batch_size=3))
    assert [f["pixel_values"].shape for f in got] == [(1, 3, 8, 8), (1, 3, 12, 20), (1, 3, 20, 12)]
    pinned = open_feed(folder, [DYNAMIC], options=FeedOptions(batch_size=3, dims={"height": 6, "width": 10}))
    assert [f["pixel_values"].shape for f in pinned] == [(3, 3, 6, 10)]


@pytest.mark.parametrize(
    ("shape", "found"),
    [
        (("n", 3, 8, 8), (1, 3, 8, 8)),
        (("n", 8, 8, 3), (1, 8, 8, 3)),
        ((1, 1, 8, 8), (1, 1, 8, 8)),
        (("n", 8, 8, 1), (1, 8, 8, 1)),
        (("n", 4, 8, 8), (1, 4, 8, 8)),
        ((3, 8, 8), (3, 8, 8)),
        ((8, 8, 3), (8, 8, 3)),
        (("n", "h", "w", 3), (1, 8, 8, 3)),
        (("n", "h", "w", "channels"), (1, 8, 8, 3)),
        ((None, None, None, None), (1, 3, 8, 8)),
    ],
)
def test_layout_from_the_shape(folder, shape, found):
    feed = open_feed(folder / "a.png", [TensorSpec("x", F32, shape)])
    (got,) = feed
    assert got["x"].shape == found
    assert feed.len_hint == 1


def test_bytes_go_in_as_they_are(folder):
    feed = open_feed(folder / "a.png", [TensorSpec("x", U8, (1, 8, 8, 3))])
    (got,) = feed
    np.testing.assert_array_equal(got["x"][0], np.asarray(Image.open(folder / "a.png")))
    assert feed.warning is None


def test_bgr_and_grey(folder):
    rgb = np.asarray(Image.open(folder / "a.png"))
    bgr = FeedOptions(image=ImageOptions(channels="bgr", scale=1.0))
    (got,) = open_feed(folder / "a.png", [NCHW], options=bgr)
    np.testing.assert_array_equal(got["pixel_values"][0].transpose(1, 2, 0), rgb[:, :, ::-1])
    (grey,) = open_feed(folder / "a.png", [TensorSpec("x", U8, (1, 1, 8, 8))])
    np.testing.assert_array_equal(grey["x"][0, 0], np.asarray(Image.open(folder / "a.png").convert("L")))


def test_exif_orientation_is_honoured(tmp_path):
    exif = Image.Exif()
    exif[274] = 6  # the camera was turned: rotate by 90 degrees to show upright
    picture(4, 8).save(tmp_path / "turned.png", exif=exif)
    (got,) = open_feed(tmp_path, [DYNAMIC])
    assert got["pixel_values"].shape == (1, 3, 8, 4)


def test_an_image_smaller_than_its_crop_is_padded_with_black(tmp_path):
    picture(5, 5).save(tmp_path / "a.png")
    options = FeedOptions(image=ImageOptions(resize="none", crop=(8, 8), scale=1.0))
    (got,) = open_feed(tmp_path, [NCHW], options=options)
    expected = np.zeros((8, 8, 3), np.float32)
    expected[2:7, 2:7] = np.asarray(Image.open(tmp_path / "a.png"))  # ceil(3 / 2) rows above, as Hugging Face pads
    np.testing.assert_array_equal(got["pixel_values"][0].transpose(1, 2, 0), expected)


def test_the_longer_edge_is_limited(tmp_path):
    picture(10, 40).save(tmp_path / "a.png")
    options = FeedOptions(image=ImageOptions(size=(20, 20), resize="shortest", longest=60))
    (got,) = open_feed(tmp_path, [DYNAMIC], options=options)
    assert got["pixel_values"].shape == (1, 3, 15, 60)


# ---- errors ----------------------------------------------------------------------------------------------------------


def test_unreadable_images(folder):
    whole = (folder / "b.bmp").read_bytes()
    (folder / "b.bmp").write_bytes(whole[:100])
    with pytest.raises(DataError, match=r"image .*b\.bmp cannot be read .*; remove or replace it"):
        list(open_feed(folder, [NCHW]))
    (folder / "a.png").write_text("no image")
    with pytest.raises(DataError, match=r"image .*a\.png cannot be read"):
        list(open_feed(folder, [NCHW]))


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        ([TensorSpec("x", F32, ("n", 16))], "input x: float32.n, 16. is no image"),
        ([TensorSpec("x", F32, ("n", 7, 8, 8))], "is no image with 1, 3 or 4 channels"),
        ([TensorSpec("x", F32, ("n", 3, 8, 3))], "may be nchw or nhwc; give the layout"),
        ([NCHW, TensorSpec("mask", F32, ("n", 8))], "has 2 inputs .*mask"),
    ],
)
def test_models_without_an_image_input(folder, specs, message):
    with pytest.raises(DataError, match=message):
        open_feed(folder, specs)


def test_a_layout_that_is_given_decides(folder):
    options = FeedOptions(image=ImageOptions(layout="nhwc"))
    (got,) = open_feed(folder / "a.png", [TensorSpec("x", F32, ("n", 3, 8, 3))], options=options)
    assert got["x"].shape == (1, 3, 8, 3)


def test_a_crop_of_another_size_than_the_model_wants(folder):
    options = FeedOptions(image=ImageOptions(size=(10, 10)))
    with pytest.raises(DataError, match=r"image pictures/a.png.*\[3, 10, 10\] but the model wants \[3, 8, 8\]"):
        list(open_feed(folder, [NCHW], options=options))


def test_arrays_and_images_together(folder):
    np.save(folder / "x.npy", np.zeros(3))
    with pytest.raises(DataError, match=r"both arrays \(x.npy\) and images \(a.png\)"):
        open_feed(folder, [NCHW])


def test_labels_of_images(folder):
    with pytest.raises(DataError, match="pictures has no labels"):
        open_feed(folder, [NCHW]).labels("y")


def test_pillow_is_missing(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(DataError, match=r"pip install 'onnxq\[images\]'"):
        open_feed(folder, [NCHW])


@pytest.mark.parametrize(
    "bad",
    [{"resize": "stretch"}, {"size": (3,)}, {"crop": (0, 3)}, {"std": (0.0,)}, {"mean": ()}, {"resample": "best"}],
)
def test_image_options_refuse_nonsense(bad):
    with pytest.raises(ConfigError, match="image option"):
        ImageOptions(**bad)


def test_means_for_another_number_of_channels(folder):
    with pytest.raises(ConfigError, match="mean has 2 numbers, but the model takes 3 channels"):
        open_feed(folder, [NCHW], options=FeedOptions(image=ImageOptions(mean=(0.1, 0.2))))


def test_options_and_config_exclude_each_other():
    with pytest.raises(ConfigError, match="exclude each other"):
        FeedOptions(image=ImageOptions(), preprocessor="p.json")
