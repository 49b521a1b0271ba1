"""Speech by Debian's espeak-ng."""

from __future__ import annotations

import subprocess

import numpy as np

from apps.base import Array

RATE, ESPEAK_RATE = 16_000, 22_050


def spoken(voice: str, pitch: int, speed: int, text: str) -> Array:
    """A sentence at 16 kHz in [-1, 1]; ends the program, naming the package, where espeak-ng is not installed."""
    from scipy.signal import resample_poly

    command = ["espeak-ng", "-v", voice, "-p", str(pitch), "-s", str(speed), "--stdout", text]
    try:
        sound = subprocess.run(command, capture_output=True, check=True).stdout[44:]
    except FileNotFoundError as error:
        raise SystemExit("espeak-ng is missing: apt-get install espeak-ng") from error
    wave = np.frombuffer(sound[: len(sound) // 2 * 2], np.int16).astype(np.float64)
    wave = resample_poly(wave, RATE // 50, ESPEAK_RATE // 50)
    return wave / max(1.0, np.abs(wave).max())
