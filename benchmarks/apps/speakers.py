"""Resemblyzer: who speaks; an LSTM of three layers turns 1.6 seconds of speech into 256 numbers that are not negative.

The network is exported to ONNX (opset 17, any number of pieces) as a user would. Speakers are voices of espeak-ng (a
language, a variant, a pitch and a speed), other variants in calibration than in the test. As in the package: sound is
raised to -30 dBFS, a mel spectrogram (not its logarithm) is cut into overlapping pieces, and a recording's embedding is
the mean of its pieces'. A speaker is known by the mean of three recordings; the others are told by the largest cosine.
"""

from __future__ import annotations

import itertools
import warnings
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from apps import drawing, speech
from apps.base import Answers, Application, Array, Feed, cache_folder, cached_arrays, label_figures, package_folder

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

PACKAGE = "resemblyzer==0.1.4"
OPSET = 17
RATE = speech.RATE
WINDOW, HOP, BANDS = 400, 160, 40
PIECE, STEP, LEAST_COVERED = 160, 80, 0.75
LOUDNESS_DBFS = -30
LANGUAGES = ("en-us", "en-gb", "en-gb-scotland", "en-gb-x-rp", "de", "fr", "it", "es")
VARIANTS = {"calib": ("m1", "m3", "m5", "m7", "f1", "f3"), "test": ("m2", "m4", "m6", "m8", "f2", "f4")}
SPEAKERS = {"calib": 24, "test": 48}
KNOWN, ASKED = 3, 8
SEEDS = {"calib": 16, "test": 17}


def model_path() -> Path:
    """The exported model; written to the cache at the first call."""
    path = cache_folder() / "resemblyzer.onnx"
    if not path.exists():
        partial = path.with_suffix(".part")
        export(package_folder(PACKAGE) / "resemblyzer" / "pretrained.pt", partial)
        partial.rename(path)
    return path


def export(weights: Path, path: Path) -> None:
    """Write the network as ONNX: mels [pieces, 160, 40] to embedding [pieces, 256] of length 1."""
    import torch

    class Encoder(torch.nn.Module):
        """The network as the package has it."""

        def __init__(self) -> None:
            super().__init__()
            self.lstm = torch.nn.LSTM(BANDS, 256, 3, batch_first=True)
            self.linear = torch.nn.Linear(256, 256)

        def forward(self, mels: torch.Tensor) -> torch.Tensor:
            raw = torch.relu(self.linear(self.lstm(mels)[1][0][-1]))
            return raw / torch.norm(raw, dim=1, keepdim=True)

    encoder = Encoder()
    state = torch.load(weights, map_location="cpu", weights_only=True)["model_state"]
    encoder.load_state_dict({name: value for name, value in state.items() if name in encoder.state_dict()})
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            encoder.eval(),
            (torch.zeros(2, PIECE, BANDS),),
            str(path),
            input_names=["mels"],
            output_names=["embedding"],
            dynamic_axes={"mels": {0: "pieces"}, "embedding": {0: "pieces"}},
            opset_version=OPSET,
            dynamo=False,
        )


def synthesise() -> dict[str, Array]:
    """`<half><speaker>.<recording>` [samples] int16."""
    arrays = {}
    for half, count in SPEAKERS.items():
        rng = np.random.default_rng(SEEDS[half])
        voices = [f"{a}+{b}" for a, b in itertools.product(LANGUAGES, VARIANTS[half])]
        for speaker, voice in enumerate(rng.permutation(voices)[:count]):
            pitch, speed = int(rng.integers(5, 95)), int(rng.integers(120, 220))
            for recording in range(KNOWN + ASKED):
                text = drawing.phrase(rng, 4, 7)
                shift, faster = int(rng.integers(-4, 5)), int(rng.integers(-10, 11))
                sound = speech.spoken(str(voice), pitch + shift, speed + faster, text)
                sound = sound * 10 ** (rng.uniform(-20, 0) / 20)
                sound = sound + rng.standard_normal(len(sound)) * 10 ** (rng.uniform(-60, -40) / 20)
                arrays[f"{half}{speaker}.{recording}"] = np.clip(np.rint(sound * 32767), -32768, 32767).astype(np.int16)
    return arrays


@lru_cache(maxsize=1)
def filters() -> Array:
    """Slaney's triangular mel filters of equal area, as librosa has them: [40, 201]."""
    knee, step = 1000.0, np.log(6.4) / 27
    highest = knee * 3 / 200 + np.log(RATE / 2 / knee) / step
    mels = np.linspace(0, highest, BANDS + 2)
    edges = np.where(mels < 15, mels * 200 / 3, knee * np.exp(step * (mels - 15)))
    bins = np.fft.rfftfreq(WINDOW, 1 / RATE)
    low, middle, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    shape = np.clip(np.minimum((bins - low) / (middle - low), (high - bins) / (high - middle)), 0, None)
    return shape * 2 / (high - low)


def spectrogram(sound: Array) -> Array:
    """Mel power spectrogram of int16 samples: [frames, 40] float32."""
    wave = sound.astype(np.float64) / 32767
    level = 20 * np.log10(np.sqrt(np.mean(wave**2)))
    wave = np.pad(wave * 10 ** (max(0.0, LOUDNESS_DBFS - level) / 20), WINDOW // 2)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)
    frames = np.lib.stride_tricks.sliding_window_view(wave, WINDOW)[::HOP] * window
    return (np.abs(np.fft.rfft(frames)) ** 2 @ filters().T).astype(np.float32)


def pieces(mels: Array) -> Array:
    """The pieces of a spectrogram [frames, 40]: [pieces, 160, 40], the last filled with silence."""
    starts = list(range(0, max(1, len(mels) - PIECE + STEP + 1), STEP))
    if len(starts) > 1 and (len(mels) - starts[-1]) / PIECE < LEAST_COVERED:
        starts.pop()
    padded = np.pad(mels, ((0, max(0, starts[-1] + PIECE - len(mels))), (0, 0)))
    return np.stack([padded[start : start + PIECE] for start in starts])


@lru_cache(maxsize=2)
def recordings(half: str) -> list[list[Array]]:
    """For each speaker of a half, for each recording, its pieces."""
    arrays = cached_arrays("speakers", synthesise, __file__, drawing.__file__, speech.__file__)
    return [
        [pieces(spectrogram(arrays[f"{half}{speaker}.{i}"])) for i in range(KNOWN + ASKED)]
        for speaker in range(SPEAKERS[half])
    ]


def calibration() -> list[Feed]:
    """One piece a feed: the first of each recording."""
    return [{"mels": made[:1]} for speaker in recordings("calib") for made in speaker]


def unit(rows: Array) -> Array:
    """Rows of length 1."""
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def predict(session: InferenceSession) -> Answers:
    """Embeddings of all test recordings: [speakers, recordings, 256]; [pieces, 256] of their pieces."""
    found = [[session.run(None, {"mels": made})[0] for made in speaker] for speaker in recordings("test")]
    means = np.array([[unit(rows.mean(0)) for rows in speaker] for speaker in found])
    return {"embeddings": means, "pieces": np.concatenate([rows for speaker in found for rows in speaker])}


def told(embeddings: Array) -> Array:
    """The speaker that each recording that is not known is told to be of: [speakers x ASKED]."""
    known = unit(embeddings[:, :KNOWN].mean(1))
    return (embeddings[:, KNOWN:].reshape(-1, embeddings.shape[-1]) @ known.T).argmax(1)


def compare(reference: Answers, answers: Answers) -> dict[str, float]:
    """Share of speakers told as with the float model's embeddings, both shares of right ones, cosine with float."""
    wanted, got = reference["embeddings"], answers["embeddings"]
    truth = np.repeat(np.arange(len(wanted)), ASKED)
    cosine = (unit(reference["pieces"]) * unit(answers["pieces"])).sum(1)
    return label_figures(told(wanted), told(got), truth) | {
        "cosine": round(float(cosine.mean()), 5),
        "cosine_worst": round(float(cosine.min()), 5),
        "recordings": len(truth),
    }


APPLICATIONS = (
    Application(
        name="speakers",
        title="Resemblyzer, who speaks",
        model_path=model_path,
        calibration=calibration,
        predict=predict,
        compare=compare,
        latency_feed=lambda: {"mels": recordings("test")[0][0][:1]},
    ),
)
