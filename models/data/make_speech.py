"""Synthesise the spoken keywords that `keyword_spotter` and `recurrent` are trained, calibrated and tested on.

espeak-ng speaks the 35 words of the Speech Commands vocabulary with about a hundred voice variants in up to eight
English accents, at random pitch, speed and intonation. Every clip is then made hard: reverberation, band limits,
clipping, and white, pink, brown, hum or babble noise at a random signal-to-noise ratio.

The split is by voice: the variants in TEST_VARIANTS (whole families of them) never occur in training, and two accents
occur in the test half only. The babble behind a clip comes from clips of its own half.

A clip is one second at 16 kHz, turned into a log-mel picture of FRAMES x MELS (window 40 ms, hop 20 ms, 60-7600 Hz).
It is stored as uint8 by the affine map

    code = clip(round((dB - FLOOR_DB) * 255 / RANGE_DB), 0, 255),   dB = 10 * log10(mel power)

with mel power taken from the spectrum of samples in [-1, 1] divided by the window's energy. The networks take these
0..255 codes as float32 and normalise inside the graph.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import re
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path

import numpy as np
from packing import save_npz
from scipy.signal import butter, fftconvolve, lfilter, resample_poly, sosfilt

HERE = Path(__file__).resolve().parent
DEFAULT_CACHE = Path(tempfile.gettempdir()) / "onnxq-models"
SEED = 35
RATE = 16_000
ESPEAK_RATE = 22_050
WINDOW, HOP, FFT = 640, 320, 1024
FRAMES, MELS = 49, 40
FLOOR_DB, RANGE_DB = -80.0, 100.0
TRAIN_SNR_DB, TEST_SNR_DB = (5.0, 28.0), (14.0, 34.0)  # unheard voices are hard enough with milder noise
JITTER = 1_800  # samples by which a word may stand off the middle of its second
N_CALIB = 512
TEST_PER_WORD = 150
VIEWS = 2  # noisy versions of every training clip

WORDS = (
    *("yes", "no", "up", "down", "left", "right", "on", "off", "stop"),
    *("go", "zero", "one", "two", "three", "four", "five", "six", "seven"),
    *("eight", "nine", "bed", "bird", "cat", "dog", "happy", "house", "marvin"),
    *("sheila", "tree", "wow", "backward", "forward", "follow", "learn", "visual"),
)
TRAIN_ACCENTS = ("en-us", "en-gb", "en-gb-scotland", "en-gb-x-rp", "en-gb-x-gbclan", "en-us-nyc")
TEST_ACCENTS = (*TRAIN_ACCENTS, "en-029", "en-gb-x-gbcwmd")
TEST_VARIANTS = {
    *("m3", "m7", "f2", "f5", "Alicia", "Denis", "Gene", "Gene2", "Lee", "Mario", "Storm", "anika", "anikaRobot"),
    *("belinda", "croak", "edward", "edward2", "grandpa", "iven", "iven2", "iven3", "iven4", "max", "norbert"),
    *("quincy", "steph", "steph2", "steph3", "victor", "whisperf"),
}


def variants() -> list[str]:
    """The voice variants of the installed espeak-ng, sorted."""
    listing = subprocess.run(["espeak-ng", "--voices=variant"], capture_output=True, text=True, check=True).stdout
    return sorted(set(re.findall(r"!v/(\w+)", listing)) - {"Mr"})


def clip_jobs(test: bool) -> list[tuple[int, str, str]]:
    """(label, accent, variant) of every clip of a half, in a fixed order."""
    chosen = [name for name in variants() if (name in TEST_VARIANTS) == test]
    accents = TEST_ACCENTS if test else TRAIN_ACCENTS
    voices = [(accent, name) for accent in accents for name in chosen]
    jobs = []
    for label in range(len(WORDS)):
        rng = np.random.default_rng((SEED, test, label))
        picked = rng.permutation(len(voices))[: TEST_PER_WORD if test else None]
        jobs += [(label, *voices[index]) for index in picked]
    return jobs


def speak(job: tuple[int, bool, int, str, str]) -> np.ndarray:
    """One clean word as int16 at 16 kHz, silence trimmed, at random pitch, speed and intonation."""
    index, test, label, accent, variant = job
    rng = np.random.default_rng((SEED, 1, test, index))
    pitch, speed = str(rng.integers(15, 86)), str(rng.integers(115, 236))
    word = WORDS[label] + rng.choice([".", "?", "!", ","])
    command = ["espeak-ng", "-v", f"{accent}+{variant}", "-p", pitch, "-s", speed, "--stdout", word]
    raw = subprocess.run(command, capture_output=True, check=True).stdout[44:]
    wave = np.frombuffer(raw[: len(raw) // 2 * 2], dtype=np.int16).astype(np.float64)
    wave = resample_poly(wave, RATE // 50, ESPEAK_RATE // 50)
    loud = np.flatnonzero(np.abs(wave) > 0.02 * np.abs(wave).max(initial=1.0))
    wave = wave[loud[0] : loud[-1] + 1] if len(loud) else np.zeros(1)
    return (wave * (20_000 / max(np.abs(wave).max(), 1.0))).astype(np.int16)


def coloured_noise(rng: np.random.Generator, exponent: float) -> np.ndarray:
    """A second of noise whose power falls with frequency to the given exponent, of unit power."""
    spectrum = np.fft.rfft(rng.standard_normal(RATE))
    spectrum[1:] /= np.arange(1, len(spectrum)) ** (exponent / 2)
    spectrum[:2] = 0
    noise = np.fft.irfft(spectrum, RATE)
    return noise / noise.std()


def hum(rng: np.random.Generator) -> np.ndarray:
    """A second of mains-like hum: harmonics of a low tone, of unit power."""
    time = np.arange(RATE) / RATE
    base = rng.uniform(45, 140)
    tone = sum(rng.uniform(0.2, 1) / k * np.sin(2 * np.pi * (base * k * time + rng.uniform())) for k in range(1, 25))
    noise = tone + 0.1 * rng.standard_normal(RATE)
    return noise / noise.std()


def place(wave: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The word near the middle of one second; what is too long loses both ends."""
    padded = np.pad(wave.astype(np.float64), RATE)
    start = len(padded) // 2 - RATE // 2 + rng.integers(-JITTER, JITTER + 1)
    return padded[start : start + RATE]


def reverberate(wave: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Convolve with a decaying noise tail of a random room."""
    decay = rng.uniform(0.1, 0.6)
    time = np.arange(int(decay * RATE)) / RATE
    response = rng.standard_normal(len(time)) * np.exp(-6.9 * time / decay) * rng.uniform(0.01, 0.06)
    response[0] = 1.0
    return fftconvolve(wave, response)[: len(wave)]


def band_limit(wave: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A telephone-like band of random edges."""
    edges = (rng.uniform(80, 450), rng.uniform(2400, 5000))
    return sosfilt(butter(4, edges, btype="bandpass", fs=RATE, output="sos"), wave)


def spoil(
    wave: np.ndarray, others: list[np.ndarray], snr_db: tuple[float, float], rng: np.random.Generator
) -> np.ndarray:
    """A clean word turned into a hard one-second clip in [-1, 1]."""
    clip = place(wave, rng)
    if rng.random() < 0.4:
        clip = reverberate(clip, rng)
    power = np.mean(clip[np.abs(clip) > 0.05 * np.abs(clip).max()] ** 2)
    kind = rng.integers(5)
    if kind == 0:
        noise = sum(place(other, rng) * rng.uniform(0.4, 1) for other in others)
        noise /= max(noise.std(), 1.0)
    else:
        noise = hum(rng) if kind == 1 else coloured_noise(rng, (0.0, 1.0, 2.0)[kind - 2])
    clip = clip + noise * np.sqrt(power / 10 ** (rng.uniform(*snr_db) / 10))
    if rng.random() < 0.3:
        clip = band_limit(clip, rng)
    if rng.random() < 0.5:
        clip = lfilter([1.0, -rng.uniform(-0.5, 0.9)], [1.0], clip)
    clip = clip / np.abs(clip).max()
    if rng.random() < 0.25:
        clip = np.clip(clip, -1, 1 / rng.uniform(2, 10)) if rng.random() < 0.3 else np.tanh(clip * rng.uniform(2, 10))
    return clip * 10 ** (-rng.uniform(0, 25) / 20) + rng.standard_normal(RATE) * 1e-4


@lru_cache(maxsize=1)
def mel_filters() -> np.ndarray:
    """Triangular filters [FFT // 2 + 1, MELS], evenly spaced on the mel scale between 60 and 7600 Hz."""
    low, high = 2595 * np.log10(1 + 60 / 700), 2595 * np.log10(1 + 7600 / 700)
    centres = 700 * (10 ** (np.linspace(low, high, MELS + 2) / 2595) - 1)
    hertz = np.fft.rfftfreq(FFT, 1 / RATE)[:, None]
    rising = (hertz - centres[:-2]) / (centres[1:-1] - centres[:-2])
    falling = (centres[2:] - hertz) / (centres[2:] - centres[1:-1])
    return np.clip(np.minimum(rising, falling), 0, None)


def features(clip: np.ndarray) -> np.ndarray:
    """The uint8 log-mel picture [FRAMES, MELS] of a one-second clip."""
    window = np.hanning(WINDOW)
    frames = np.lib.stride_tricks.sliding_window_view(clip, WINDOW)[::HOP][:FRAMES]
    power = np.abs(np.fft.rfft(frames * window, FFT)) ** 2 / np.sum(window**2)
    decibel = 10 * np.log10(power @ mel_filters() + 1e-12)
    return np.clip(np.rint((decibel - FLOOR_DB) * 255 / RANGE_DB), 0, 255).astype(np.uint8)


def view(job: tuple[int, int, bool]) -> np.ndarray:
    """The features of one noisy version of one clean clip; the clips are those a worker inherits at the fork."""
    index, number, test = job
    rng = np.random.default_rng((SEED, 2, test, index, number))
    clips = CLEAN["clips"]
    others = [clips[other] for other in rng.integers(0, len(clips), 4)]
    snr_db = TEST_SNR_DB if test else TRAIN_SNR_DB
    return features(spoil(clips[index].astype(np.float64), others, snr_db, rng))


CLEAN: dict[str, list[np.ndarray]] = {}


def build(test: bool, views: int, cache: Path, processes: int) -> tuple[np.ndarray, np.ndarray]:
    """Features [N, FRAMES, MELS] and labels [N] of a half; the clean clips are kept in the cache."""
    jobs = clip_jobs(test)
    path = cache / f"speech_clean_{'test' if test else 'train'}.npz"
    if not path.exists():
        with multiprocessing.Pool(processes) as pool:
            waves = pool.map(speak, [(i, test, *job) for i, job in enumerate(jobs)], chunksize=64)
        ends = np.cumsum([len(wave) for wave in waves])
        temporary = path.with_suffix(".part.npz")
        np.savez(temporary, samples=np.concatenate(waves), ends=ends)
        os.replace(temporary, path)
    with np.load(path) as archive:
        CLEAN["clips"] = np.split(archive["samples"], archive["ends"][:-1])
    if len(CLEAN["clips"]) != len(jobs):
        raise SystemExit(f"{path} holds another set of clips; delete it")
    with multiprocessing.get_context("fork").Pool(processes) as pool:
        todo = [(i, number, test) for number in range(views) for i in range(len(jobs))]
        pictures = np.stack(pool.map(view, todo, chunksize=128))
    labels = np.tile(np.array([job[0] for job in jobs], dtype=np.int64), views)
    return pictures, labels


def main() -> None:
    """Write the training set to the cache, and the calibration and test sets next to this script."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE, help="folder for clean clips and training set")
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args()
    args.cache.mkdir(parents=True, exist_ok=True)
    test_x, test_y = build(True, 1, args.cache, args.processes)
    train_x, train_y = build(False, VIEWS, args.cache, args.processes)
    picked = np.random.default_rng(SEED).permutation(len(train_x))[:N_CALIB]
    save_npz(HERE / "speech_test.npz", features=test_x, labels=test_y)
    save_npz(HERE / "speech_calib.npz", features=train_x[picked], labels=train_y[picked])
    np.savez(args.cache / "speech_train.npz", features=train_x, labels=train_y)
    print(f"{len(train_x)} training, {len(picked)} calibration and {len(test_x)} test clips of {len(WORDS)} words")


if __name__ == "__main__":
    main()
