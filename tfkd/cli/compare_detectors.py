"""The part of `tfkd compare` for detectors: mAP, times and sizes."""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tfkd import checks
from tfkd.cli import data_flags
from tfkd.cli.exit_codes import UsageError
from tfkd.cli.terminal import Terminal

if TYPE_CHECKING:
    from tfkd.detection import Anchors
    from tfkd.recipes.data import Data, Part
    from tfkd.report import DetectionTable


def anchors_of(
    paths: dict[str, str], opened: dict[str, Any], flag: str | None
) -> dict[str, Anchors]:
    """The anchors of the Keras models: of the flag, or of the file beside the model.

    Raises:
        UsageError: if there are none.
        ValueError: if the file holds no anchors.
    """
    from tfkd import detection
    from tfkd.recipes.detecting import anchors_file

    found = {}
    for name, model in opened.items():
        if isinstance(model, pathlib.Path):
            continue
        file = pathlib.Path(flag) if flag else anchors_file(paths[name])
        if file is None or not file.is_file():
            missing = f"there is no {file}" if flag else "there is no anchors.json beside it"
            raise UsageError(
                f"{name} is a Keras model, and {missing}: pass its --anchors=FILE.json."
            )
        found[name] = detection.Anchors.load(file)
    return found


def table(
    opened: dict[str, Any],
    anchors: dict[str, Anchors],
    sides: dict[str, tuple[int, int]],
    data: Data,
    args: argparse.Namespace,
    terminal: Terminal,
) -> DetectionTable:
    """Scores all detectors, each on images of its own size, and times them in turns."""
    from tfkd import report

    sizes = {data.example_shape[:2]: data}
    rows, timed = [], {}
    for name, model in opened.items():
        side = sides.get(name, data.example_shape[:2])
        if side not in sizes:
            sizes[side] = data_flags.open_data(args, terminal, side)
        part = data_flags.part_of(sizes[side], args)
        terminal.say(f"{name}: detecting in {len(part):,} images")
        runner = _runner(name, model, anchors.get(name), part, data.class_names, args.threads)
        truth = {"boxes": part.boxes, "classes": part.y}
        scores = report.detection(runner.detect(), truth, data.class_names, side)
        timed[name] = runner.once
        row = report.DetectionRow(name, scores, size=runner.size)
        if not isinstance(model, pathlib.Path):
            counts = report.profile(model)
            row = dataclasses.replace(row, params=counts.params, macs=counts.macs)
        rows.append(row)
    terminal.say("measuring times")
    times = report.latency(timed, runs=args.runs, seconds=args.seconds)
    rows = [dataclasses.replace(row, latency=times[row.model]) for row in rows]
    note = f"{data.name}, {args.part} part. Times: one image, its boxes not yet selected."
    if anchors:
        note += f" {', '.join(anchors)}: in TensorFlow, compiled; the files: in LiteRT."
    return report.DetectionTable(rows, [note])


class _Runner(NamedTuple):
    detect: Callable[[], Any]  # in all images
    once: Callable[[], Any]  # the network alone, on one image
    size: int | None  # bytes of the file


def _numbers(name: str, labels: Sequence[str], names: Sequence[str]) -> np.ndarray:
    """The class of the data for each class of a file: the one of the same name."""
    if sorted(labels) == sorted(names):
        return np.array([list(names).index(label) for label in labels])
    if len(labels) > len(names):
        raise ValueError(
            f"{name} detects {', '.join(labels[:5])}; the data have {', '.join(names[:5])}."
        )
    checks.warn(
        f"{name} calls its classes {', '.join(labels[:5])}, and the data {', '.join(names[:5])}: "
        "they are taken for the same by number."
    )
    return np.arange(len(labels))


def _renumbered(found: dict[str, np.ndarray], numbers: np.ndarray) -> dict[str, np.ndarray]:
    classes = found["classes"]
    return {**found, "classes": np.where(classes < 0, classes, numbers[np.maximum(classes, 0)])}


def _runner(
    name: str,
    model: Any,
    anchors: Anchors | None,
    part: Part,
    names: Sequence[str],
    threads: int,
) -> _Runner:
    import tensorflow as tf

    from tfkd import report
    from tfkd.formats.detector import load_detector

    if isinstance(model, pathlib.Path):
        if model.suffix.lower() != ".tflite":
            raise ValueError(f"{name}: detectors are compared as .tflite or .keras files.")
        detector = load_detector(model, threads)
        numbers = _numbers(name, detector.labels, names)
        return _Runner(
            lambda: _renumbered(detector(part.x), numbers),
            lambda: detector.outputs(part.x[:1]),
            model.stat().st_size,
        )
    step = tf.function(lambda x: model(x, training=False))
    image = tf.cast(part.x[:1], tf.float32) / 127.5 - 1.0
    return _Runner(lambda: report.detect(model, part.x, anchors), lambda: step(image), None)
