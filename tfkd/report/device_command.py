"""Timing of a TFLite file by a shell command, such as benchmark_model on a device through adb."""

from __future__ import annotations

import pathlib
import re
import shlex
import subprocess

from tfkd import checks

PLACE = "{model}"
_SECONDS = 600  # before a command that does not end is stopped
_LAST_LINES = 5
# Inference timings in us: Init: 5685, First inference: 1853, ..., Inference (avg): 1457.5
_AVERAGE = re.compile(r"Inference \(avg\):\s*([0-9.]+(?:[eE][+-]?[0-9]+)?)")


def checked(name: str, command: str) -> str:
    """Accepts a shell command with a place for the file's path."""
    expected = f"a shell command with {PLACE} where the file's path goes"
    checks.instance(name, command, str, expected)
    if PLACE not in command:
        fix = f"For example '/data/local/tmp/benchmark_model --graph={PLACE}'."
        raise checks.value_error(name, expected, command, fix)
    return command


def milliseconds(command: str, path: pathlib.Path) -> float:
    """The average time of a call that the command prints for a file.

    Raises:
        RuntimeError: if it fails, does not end, or prints no time.
    """
    line = command.replace(PLACE, shlex.quote(str(path)))
    try:
        done = subprocess.run(
            line, shell=True, capture_output=True, text=True, errors="replace", timeout=_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"`command` did not end within {_SECONDS} s: {line}") from None
    said = done.stdout + done.stderr
    if done.returncode:
        raise RuntimeError(f"`command` ended with {done.returncode}: {line}\n{_end(said)}")
    found = _AVERAGE.findall(said)
    if not found or not float(found[-1]) > 0:
        raise RuntimeError(
            "`command`: expected it to print times as TFLite's benchmark_model does, with "
            f"'Inference (avg): <microseconds>', received from {line}:\n{_end(said)}"
        )
    return float(found[-1]) / 1e3


def _end(text: str) -> str:
    lines = [line[:200] for line in text.splitlines() if line.strip()]
    return "\n".join(lines[-_LAST_LINES:]) or "(nothing)"
