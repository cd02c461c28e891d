"""Runs examples and benchmarks as a user does: in a process of their own."""

import runpy
import sys
from pathlib import Path

import numpy as np
from forks import Fork

ROOT = Path(__file__).resolve().parent.parent


def squares(count, size, random):
    """Three classes of images: a bright square at one of three places, and noise."""
    y = np.arange(count) % 3
    x = random.integers(0, 60, (count, size, size, 3))
    side = size // 3
    for image, label in zip(x, y, strict=True):
        image[side * label : side * (label + 1), side * label : side * (label + 1)] += 180
    return x.astype("uint8"), y


def _run(script, options):
    sys.path.insert(0, str(script.parent))
    sys.argv = [str(script), *options]
    runpy.run_path(str(script), run_name="__main__")


def run(script, *options, timeout=300):
    """The finished process of `python script options`."""
    return Fork(_run, ROOT / script, options, PYTHONPATH=str(ROOT)).wait(timeout)
