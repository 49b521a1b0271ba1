"""Images and sounds: noise over all, and of the worst block, for a fault in one place is heard and seen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from onnxq.measure.kinds.judge import Array, Floats, Worst
from onnxq.measure.kinds.kind import Kind, Measured, Promise, Where
from onnxq.measure.kinds.layout import Layout
from onnxq.measure.kinds.numbers import share_of_energy
from onnxq.numerics import Share, sqnr_db_of

BLOCK = 16  # pixels, a side
FRAME = 1024  # samples of sound: 20 to 60 ms
# A pixel that is off by this share of the range is seen, by its surroundings if not by itself.
OFF = 0.1
# A frame of silence is compared with this share of the mean energy: noise 30 dB below the sound is masked by it.
QUIET = 1e-3
# Noise in a frame that is less than this below the sound of the frame, in dB, is heard.
FRAME_DB = 10.0


@dataclass
class Images:
    """PSNR by sample, and the share of blocks of pixels none of which is off by a tenth of the range."""

    layout: Layout
    blocks: list[Floats] = field(default_factory=list)  # by sample: the largest error of each
    places: list[Where] = field(default_factory=list)
    squares: list[float] = field(default_factory=list)  # by sample: the mean square error
    low: float = math.inf
    high: float = -math.inf
    sums: Floats = field(default_factory=lambda: np.zeros(4))  # values, squares, squared errors, count

    def add(self, reference: Array, test: Array, at: Sequence[Where]) -> None:
        for a, b, where in zip(reference, test, at, strict=True):
            x = a.astype(np.float64)
            error = np.abs(x - b)
            if not error.size:
                continue
            self.low, self.high = min(self.low, float(x.min())), max(self.high, float(x.max()))
            square = np.square(error)
            self.squares.append(float(square.mean()))
            self.sums += (x.sum(), np.square(x).sum(), square.sum(), x.size)
            self.blocks.append(blocks_of(error if error.ndim > 2 else error[..., None]))
            self.places.append(where)

    def measured(self, level_db: float | None) -> Measured:
        del level_db
        if not self.blocks:
            return Measured(Kind.IMAGE, "PSNR")
        reach = self.high - self.low
        share, worst = Share(), Worst()
        for found, at in zip(self.blocks, self.places, strict=True):
            share += Share.of(int(np.count_nonzero(found <= OFF * reach)), found.size)
            worst.note(-float(found.max()), at)
        total, squares, errors, count = self.sums.tolist()
        spread = squares - total * total / count
        level = 1.0 - errors / spread if spread > 0.0 else float(errors <= 0.0)
        return Measured(
            Kind.IMAGE,
            "PSNR",
            sqnr_db_of(reach * reach, float(np.mean(self.squares))),
            "dB",
            rule="blocks",
            share=share,
            worst=-worst.value if worst.value is not None else None,
            worst_what=f"error of a pixel, of a range of {reach:.3g}",
            worst_at=worst.at,
            promises=(Promise("blocks", share), Promise("energy", level=level)),
        )


def blocks_of(error: Floats) -> Floats:
    """The largest of ``error: [..., H, W, C]`` in each block; those at the ends may be smaller."""
    flat = error.reshape(-1, *error.shape[-3:]).max(axis=-1)
    starts = [np.arange(0, size, BLOCK) for size in flat.shape[1:]]
    return np.asarray(np.maximum.reduceat(np.maximum.reduceat(flat, starts[0], axis=1), starts[1], axis=2))


@dataclass
class Sounds:
    """SNR, and the share of frames with little noise for their own energy."""

    layout: Layout
    frames: list[tuple[Floats, Floats, Where]] = field(default_factory=list)  # energies of signal and error

    def add(self, reference: Array, test: Array, at: Sequence[Where]) -> None:
        for a, b, where in zip(reference, test, at, strict=True):
            if not a.size:
                continue
            x, y = by_time(a), by_time(b)
            starts = np.arange(0, x.shape[1], FRAME)
            signal, error = (np.square(v.astype(np.float64)) for v in (x, x.astype(np.float64) - y))
            sums = [np.add.reduceat(v, starts, axis=1).ravel() for v in (signal, error)]
            self.frames.append((sums[0], sums[1], where))

    def measured(self, level_db: float | None) -> Measured:
        if not self.frames:
            return Measured(Kind.AUDIO, "SNR")
        signal, error = sum(float(f[0].sum()) for f in self.frames), sum(float(f[1].sum()) for f in self.frames)
        mean = signal / sum(f[0].size for f in self.frames)
        share, worst = Share(), Worst()
        for energy, noise, at in self.frames:
            ratio = 10.0 * np.log10(np.maximum(energy + QUIET * mean, 1e-300) / np.maximum(noise, 1e-300))
            share += Share.of(int(np.count_nonzero(ratio >= FRAME_DB)), ratio.size)
            worst.note(float(min(ratio.min(), 200.0)), at)
        level = sqnr_db_of(signal, error)
        return Measured(
            Kind.AUDIO,
            "SNR",
            level,
            "dB",
            rule="frames",
            share=share,
            worst=worst.value,
            worst_what="SNR of a frame, dB",
            worst_at=worst.at,
            promises=(Promise("frames", share), Promise("energy", level=share_of_energy(level))),
        )


def by_time(sound: Array) -> Array:
    """``[channels, times]``: the longest axis of ``sound`` is that of time."""
    moved = np.moveaxis(sound, int(np.argmax(sound.shape)), -1)
    return moved.reshape(-1, moved.shape[-1])
