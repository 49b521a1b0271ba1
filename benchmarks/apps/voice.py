"""silero-vad: whether a frame of 32 ms holds speech; an LSTM whose state each model carries for itself.

Recordings are made of espeak-ng sentences with pauses between them, in noise (white, pink, brown or hum) at a random
ratio. Calibration and test voices differ, in accent and in variant. Calibration feeds are frames drawn from the
recordings together with the state that the float model had there.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from apps import drawing, speech
from apps.base import Answers, Application, Array, Feed, cached_arrays, package_folder, percent

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

PACKAGE = "silero-vad==6.2.3"
FOLDER = "silero_vad/data"
RATE = speech.RATE
FRAME, CONTEXT = 512, 64
VOICES = {
    "calib": ("en-us+m1", "en-us+f1", "en-gb-scotland+m4", "en-gb-x-rp+f3", "en-us+m6", "de+f4", "fr+m2", "es+f1"),
    "test": ("en-gb+m3", "en-gb+f2", "en-029+m7", "en-gb-x-gbclan+f5", "en-us-nyc+m8", "it+f2", "ru+m3", "pt+m7"),
}
SEEDS = {"calib": 5, "test": 6}
RECORDINGS, SECONDS = 16, 15
SNR_DB = (-3.0, 25.0)
FEEDS = 384
THRESHOLD = 0.5


def speak(voice: str, rng: np.random.Generator) -> Array:
    """One sentence at 16 kHz, peak 1."""
    pitch, speed = int(rng.integers(20, 80)), int(rng.integers(120, 220))
    return speech.spoken(voice, pitch, speed, drawing.phrase(rng, 2, 9))


def noise(rng: np.random.Generator) -> Array:
    """A recording's length of noise of unit power: white, pink, brown, or the hum of a mains tone."""
    size = RATE * SECONDS
    kind = int(rng.integers(4))
    if kind == 3:
        time = np.arange(size) / RATE
        base = rng.uniform(45, 140)
        made = sum(rng.uniform(0.2, 1) / k * np.sin(2 * np.pi * base * k * time) for k in range(1, 25))
        made = made + 0.1 * rng.standard_normal(size)
    else:
        spectrum = np.fft.rfft(rng.standard_normal(size))
        spectrum[1:] /= np.arange(1, len(spectrum)) ** (kind / 2)
        spectrum[: SECONDS * 20] = 0
        made = np.fft.irfft(spectrum, size)
    return made / made.std()


def record(voice: str, rng: np.random.Generator) -> Array:
    """One recording: sentences and pauses, noise, a random gain; int16."""
    clean = np.zeros(RATE * SECONDS)
    start = int(rng.integers(0, RATE))
    while start < len(clean):
        sentence = speak(voice, rng)[: len(clean) - start]
        clean[start : start + len(sentence)] = sentence * rng.uniform(0.4, 1.0)
        start += len(sentence) + int(rng.integers(RATE // 4, 3 * RATE))
    loudness = np.sqrt(np.mean(clean[np.abs(clean) > 0.02] ** 2))
    mixed = clean + noise(rng) * loudness / 10 ** (rng.uniform(*SNR_DB) / 20)
    gain = 10 ** (rng.uniform(-25, -1) / 20) / np.abs(mixed).max()
    return np.rint(mixed * gain * 32767).astype(np.int16)


def synthesise() -> dict[str, Array]:
    """Recordings of both halves: [RECORDINGS, samples] int16."""
    arrays = {}
    for half, voices in VOICES.items():
        rng = np.random.default_rng(SEEDS[half])
        arrays[half] = np.stack([record(voices[i % len(voices)], rng) for i in range(RECORDINGS)])
    return arrays


@lru_cache(maxsize=2)
def recordings(half: str) -> Array:
    """[RECORDINGS, samples] float32 in [-1, 1]."""
    sounds = cached_arrays("voice", synthesise, __file__, drawing.__file__, speech.__file__)[half]
    return sounds.astype(np.float32) / 32768


def frames(session: InferenceSession, sound: Array) -> Iterator[tuple[Feed, float]]:
    """(feed, probability of speech) frame by frame; context and state go from each frame to the next."""
    state, context = np.zeros((2, 1, 128), np.float32), np.zeros(CONTEXT, np.float32)
    for start in range(0, len(sound) - FRAME + 1, FRAME):
        chunk = sound[start : start + FRAME]
        feed = {"input": np.concatenate([context, chunk])[None], "state": state, "sr": np.array(RATE, np.int64)}
        chance, state = session.run(None, feed)
        context = chunk[-CONTEXT:]
        yield feed, float(chance[0, 0])


def model(file: str) -> Path:
    """The model file inside the package."""
    return package_folder(PACKAGE) / FOLDER / file


def calibration(file: str) -> list[Feed]:
    """FEEDS feeds spread evenly over what the float model sees in the calibration recordings."""
    from onnxruntime import InferenceSession

    session = InferenceSession(model(file), providers=["CPUExecutionProvider"])
    feeds = [feed for sound in recordings("calib") for feed, _ in frames(session, sound)]
    return [feeds[i] for i in np.linspace(0, len(feeds) - 1, FEEDS).round().astype(int)]


def predict(session: InferenceSession) -> Answers:
    """Probability of speech of every test frame."""
    return {"speech": np.array([p for sound in recordings("test") for _, p in frames(session, sound)])}


def compare(reference: Answers, answers: Answers) -> dict[str, float]:
    """Share of frames decided as by the float model, differences of probability, share of speech."""
    wanted, got = reference["speech"], answers["speech"]
    kept = percent(float(((wanted > THRESHOLD) == (got > THRESHOLD)).mean()))
    gap = np.abs(wanted - got)
    return {
        "loss": round(100 - kept, 2),
        "frames_kept": kept,
        "largest_gap": round(float(gap.max()), 4),
        "mean_gap": round(float(gap.mean()), 4),
        "speech_float": percent(float((wanted > THRESHOLD).mean())),
        "frames": len(wanted),
    }


def _application(name: str, title: str, file: str) -> Application:
    return Application(
        name=name,
        title=title,
        model_path=partial(model, file),
        calibration=partial(calibration, file),
        predict=predict,
        compare=compare,
        latency_feed=lambda: calibration(file)[FEEDS // 2],
    )


APPLICATIONS = (
    _application("voice", "silero-vad, speech or not (8 and 16 kHz in If branches)", "silero_vad.onnx"),
    _application("voice_16k", "silero-vad, speech or not (16 kHz only)", "silero_vad_16k_op15.onnx"),
)
