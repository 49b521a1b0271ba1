"""Outputs with three axes a sample: images, masks, classes of pixels, stacks of maps."""

from __future__ import annotations

from onnxq.kernels.meaning import Meaning
from onnxq.measure.kinds.kind import Kind, KindGuess
from onnxq.measure.kinds.output import Output, sizes

# More channels than that are features.
MOST_CLASSES = 64


def places(output: Output) -> KindGuess:
    """What an output ``[C, H, W]`` or ``[H, W, C]`` a sample is for."""
    if found := _maps(output):
        return found
    shape = output.shape
    last = output.layout()
    channels = -1 if (shape[-1] <= 4 < shape[0]) or (last.distribution and shape[-1] > 1) else 0
    layout, count = output.layout(channels), shape[channels]
    if layout.distribution and count > 1:
        return output.guess(Kind.PIXELS, reason=f"probabilities of {count} classes for each pixel", layout=layout)
    if word := output.says("heat"):
        return output.guess(Kind.FEATURES, reason=f"'{word}' in its name: maps of points", layout=layout)
    if count == 1:
        return _single(output, channels)
    if count in (3, 4) and (found := _picture(output, channels)):
        return found
    if word := output.says("regression"):
        return output.guess(Kind.REGRESSION, reason=f"'{word}' in its name", layout=layout)
    if count > MOST_CLASSES or output.says("features", "embedding"):
        return output.guess(Kind.FEATURES, reason=f"{count} channels of places", layout=layout)
    if layout.bounded and output.head.meaning in (Meaning.PROBABILITY, Meaning.OTHER):
        return output.guess(Kind.PIXELS, reason=f"{count} masks in [0, 1]", layout=layout)
    if (word := output.says("mask", "classes")) or _as_large(output, channels):
        text = f"'{word}' in its name" if word else f"scores of {count} classes, as large as the image"
        return output.guess(Kind.PIXELS, reason=text, layout=layout)
    return output.guess(Kind.FEATURES, reason=f"maps of {sizes(shape)}", layout=layout)


def _maps(output: Output) -> KindGuess | None:
    """Whether these are matrices of attention, one for each head."""
    rows, width = output.shape[-2:]
    layout = output.layout()
    varies = output.varies[-2:] if len(output.varies) == 3 else (False, False)
    square = rows == width or any(varies)
    if word := output.says("map"):
        return output.guess(Kind.MAP, reason=f"'{word}' in its name, matrices of {sizes((rows, width))}", layout=layout)
    if layout.distribution and width > 4 and square and not output.layout(0).distribution:
        return output.guess(Kind.MAP, reason=f"matrices of {sizes((rows, width))} whose rows sum to 1", layout=layout)
    return None


def _single(output: Output, channels: int) -> KindGuess:
    """What one channel is for: a mask, or a picture."""
    layout = output.layout(channels)
    if word := output.says("mask"):
        return output.guess(Kind.PIXELS, reason=f"'{word}' in its name", layout=layout)
    if word := output.says("regression"):
        return output.guess(Kind.IMAGE, reason=f"'{word}' in its name: a number for each pixel", layout=layout)
    if layout.bounded:
        if output.head.meaning is Meaning.PROBABILITY or (not output.head.op and output.at_ends()):
            return output.guess(Kind.PIXELS, reason="a probability for each pixel", layout=layout)
        if not output.says("image"):
            kinds = Kind.PIXELS, Kind.IMAGE
            return output.guess(*kinds, reason="a number in [0, 1] for each pixel: a mask or an image", layout=layout)
    if output.says("image") or _as_large(output, channels):
        return output.guess(Kind.IMAGE, reason="a number for each pixel", layout=layout)
    return output.guess(Kind.FEATURES, reason=f"one map of {sizes(output.shape)}", layout=layout)


def _picture(output: Output, channels: int) -> KindGuess | None:
    """Whether three or four channels are colours."""
    layout = output.layout(channels)
    word = output.says("image")
    if word or (_as_large(output, channels) and not output.says("mask", "classes")):
        text = f"'{word}' in its name" if word else "as large as the image that it is made of, or several times"
        return output.guess(Kind.IMAGE, reason=f"{output.shape[channels]} colours, {text}", layout=layout)
    return None


def _as_large(output: Output, channels: int) -> bool:
    """Whether it has the size of an image among the inputs, or a multiple of it."""
    places = output.shape[1:] if channels == 0 else output.shape[:-1]
    for shape in output.seen.images[:1]:
        size = shape[2:] if min(shape[1], 4) == shape[1] else shape[1:3]
        factors = {p / s for p, s in zip(places, size, strict=True)}
        if len(factors) == 1 and min(factors) >= 0.5:
            return True
    return False
