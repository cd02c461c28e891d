"""Runs examples and benchmarks as a user does: in a process of their own."""

import atexit
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent

# Each process is a fork of one that has imported TensorFlow, and has not used it:
# that saves the seconds of an import in each.
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["tfkd", "tensorflow", "tf_keras", "tensorflow_model_optimization"])


def squares(count, size, random):
    """Three classes of images: a bright square at one of three places, and noise."""
    y = np.arange(count) % 3
    x = random.integers(0, 60, (count, size, size, 3))
    side = size // 3
    for image, label in zip(x, y, strict=True):
        image[side * label : side * (label + 1), side * label : side * (label + 1)] += 180
    return x.astype("uint8"), y


def _main(script, options, out, err):
    """What the new process does."""
    for name, number in ((out, 1), (err, 2)):
        os.dup2(os.open(name, os.O_WRONLY), number)
    # The streams of a fork may be other files than these.
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
    os.environ["PYTHONPATH"] = str(ROOT)  # for processes that the script starts
    sys.path.insert(0, str(Path(script).parent))
    sys.argv = [str(script), *options]
    code = 1
    try:
        runpy.run_path(str(script), run_name="__main__")
        code = 0
    except SystemExit as error:
        code = error.code
    except BaseException:
        traceback.print_exc()
    atexit._run_exitfuncs()
    sys.exit(code)


def run(script, *options):
    """The finished process of `python script options`."""
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in ("out", "err")]
        for file in files:
            file.touch()
        process = _SERVER.Process(target=_main, args=(ROOT / script, options, *map(str, files)))
        process.start()
        process.join(300)
        if process.exitcode is None:
            process.kill()
            raise subprocess.TimeoutExpired([script, *options], 300)
        return subprocess.CompletedProcess(
            [script, *options], process.exitcode, *(file.read_text() for file in files)
        )
