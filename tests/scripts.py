"""Runs examples and benchmarks as a user does: in a process of their own."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent


def squares(count, size, random):
    """Three classes of images: a bright square at one of three places, and noise."""
    y = np.arange(count) % 3
    x = random.integers(0, 60, (count, size, size, 3))
    side = size // 3
    for image, label in zip(x, y, strict=True):
        image[side * label : side * (label + 1), side * label : side * (label + 1)] += 180
    return x.astype("uint8"), y


def run(script, *options):
    """The finished process of `python script options`."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    return subprocess.run(
        [sys.executable, str(ROOT / script), *options],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
    )
