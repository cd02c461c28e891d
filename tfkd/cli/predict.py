"""`tfkd predict`: runs an exported file on images, texts or arrays."""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import tempfile
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from tfkd.cli import data_flags, exit_codes, quiet
from tfkd.cli.parsing import Parser
from tfkd.cli.sections import Listing
from tfkd.cli.terminal import Terminal

_SHOWN = 8  # numbers of an output without classes
_CLASSES = 1000  # more numbers without labels are no classes


def flags(parser: Parser) -> None:
    """Defines the flags."""
    parser.examples("""
        tfkd predict model.tflite cat.jpg dog.png --top=3
        tfkd predict detector.tflite street.jpg --draw=found.png
        tfkd predict sentiment.tflite "a fine film" "so dull" --json
    """)
    parser.add_argument("file", metavar="FILE", help=".tflite, .onnx, .keras, .h5 or a SavedModel")
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="IMAGE|TEXT",
        help="image files or folders of them, texts or a .txt file of one a line, or .npy arrays",
    )
    parser.add_argument(
        "--top",
        type=int,
        metavar="N",
        help="classes an example (default: 5); boxes an image (default: all)",
    )
    parser.add_argument(
        "--threads", type=int, metavar="N", default=1, help="of one call (default: 1)"
    )
    parser.add_argument("--draw", metavar="PNG", help="of a detector: draw the boxes here")
    data_flags.add_preprocess(parser)


def run(args: argparse.Namespace, terminal: Terminal) -> int:
    """Prints one row per class and example, or one per box."""
    if args.top is not None and args.top < 1:
        raise exit_codes.UsageError(f"--top: expected 1 or more, received {args.top}")
    if args.threads < 1:
        raise exit_codes.UsageError(f"--threads: expected 1 or more, received {args.threads}")
    quiet.import_tensorflow()
    path = pathlib.Path(args.file)
    found = _detector(path, args) if path.is_file() else None
    if found is not None:
        terminal.print(_detect(found, args))
        return exit_codes.DONE
    if args.draw:
        raise exit_codes.UsageError(
            "--draw: the file is no detector of tfkd: it finds no boxes. A .keras detector needs "
            "anchors.json beside it."
        )
    terminal.print(_classify(path, args, terminal))
    return exit_codes.DONE


def is_detector(path: pathlib.Path) -> bool:
    """Whether a .tflite file was written by `tfkd.export.detector_to_tflite`."""
    from tfkd.formats import associated_files

    return "tfkd_detector.json" in associated_files.read(path)


class _Detector(NamedTuple):
    size: Sequence[int]  # height and width of the images
    labels: Sequence[str]
    find: Callable[[np.ndarray], Any]  # from (B, H, W, 3) pixels to detections


def _detector(path: pathlib.Path, args: argparse.Namespace) -> _Detector | None:
    """A detector's file, or a Keras model with anchors.json beside it; None for other files.

    Raises:
        ValueError: if the model's image size is open, or the anchors are those of another one.
    """
    if path.suffix.lower() == ".tflite":
        if not is_detector(path):
            return None
        from tfkd.formats.detector import load_detector

        file = load_detector(path, args.threads)
        return _Detector(file.size[:2], file.labels, file)
    if path.suffix.lower() not in (".keras", ".h5", ".hdf5"):
        return None
    from tfkd import report
    from tfkd.recipes.detecting import anchors_file, anchors_of
    from tfkd.recipes.models import open_model

    if anchors_file(path) is None:
        return None
    model, anchors = open_model(path), anchors_of(path)
    side = model.input_shape[1:3]
    if None in side:
        raise ValueError(f"{path}: its images may have any size; predict its .tflite file instead.")
    kept = path.with_name("labels.txt")
    labels = kept.read_text(encoding="utf-8").split("\n")[:-1] if kept.is_file() else []
    count = model.output_shape["classes"][-1] - 1  # without the background
    labels += [f"class {number}" for number in range(len(labels), count)]
    return _Detector(side, labels, lambda images: report.detect(model, images, anchors))


def _detect(detector: _Detector, args: argparse.Namespace) -> Listing:
    from tfkd import report
    from tfkd.data.folder import read_image

    files = _image_files(args.inputs)
    whole = [read_image(file) for file in files]
    images = np.stack([read_image(file, size=detector.size) for file in files])
    found = detector.find(images)
    rows: list[tuple[Any, ...]] = []
    for index, (file, image) in enumerate(zip(files, whole, strict=True)):
        size = np.array([image.shape[1], image.shape[0]] * 2)
        for row in range(int(found["num_detections"][index]))[: args.top]:
            box = [round(float(v), 1) for v in found["boxes"][index, row] * size]
            label = detector.labels[int(found["classes"][index, row])]
            rows.append((str(file), label, round(float(found["confidence"][index, row]), 4), *box))
    if args.draw:
        report.detection_pictures(images, found, class_names=detector.labels, path=args.draw)
    note = "Corners in pixels of the image." if rows else "No object was found."
    return Listing(("file", "class", "confidence", "x1", "y1", "x2", "y2"), rows, 2, note)


def _image_files(inputs: Sequence[str]) -> list[pathlib.Path]:
    """The files, and those in folders.

    Raises:
        FileNotFoundError: if there is no such file, or no image in a folder.
    """
    from tfkd.data.layout import EXTENSIONS

    found: list[pathlib.Path] = []
    for name in inputs:
        path = pathlib.Path(name)
        if not path.is_dir():
            found.append(path)
            continue
        inside = sorted(p for p in path.iterdir() if p.suffix.lower() in EXTENSIONS)
        if not inside:
            raise FileNotFoundError(f"There is no image in the folder {name!r}.")
        found += inside
    return found


def _classify(path: pathlib.Path, args: argparse.Namespace, terminal: Terminal) -> Listing:
    from tfkd import runtime
    from tfkd.cli import class_outputs

    with tempfile.TemporaryDirectory() as folder:
        file = _runnable(path, folder)
        with runtime.Predictor(file, args.threads) as predictor:
            names, x = _examples(predictor, file, args, terminal)
            outputs = predictor(x)
            labels = predictor.labels or _labels_of_run(path)
        if isinstance(outputs, dict):
            return _numbers(names, outputs)
        are_scores = outputs.ndim == 2 and outputs.dtype.kind == "f"
        if isinstance(labels, dict) or len(labels or ()) != max(2, outputs.shape[-1]):
            labels = None
        if not are_scores or (labels is None and outputs.shape[1] > _CLASSES):
            return _numbers(names, {"output": outputs})
        kind, note = class_outputs.kind_of(path, file, x, outputs, labels is not None)
    if kind == class_outputs.NUMBERS:
        return _numbers(names, {"output": outputs}, note)
    chances = class_outputs.probabilities(kind, outputs)
    return _classes(names, chances, labels, args.top or 5, note)


def _labels_of_run(path: pathlib.Path) -> list[str] | None:
    """The classes that a run has written beside its models, or None."""
    kept = path.with_name("labels.txt")
    if not kept.is_file() or not kept.with_name("run.json").is_file():
        return None
    return kept.read_text(encoding="utf-8").split("\n")[:-1]


def _runnable(path: pathlib.Path, folder: str) -> pathlib.Path:
    """The file itself; of a model of Keras 3 or an .h5 file, a .keras file of Keras 2."""
    from tfkd.recipes.models import is_of_keras_3, open_model

    is_other = path.suffix.lower() in (".h5", ".hdf5")
    if not path.is_file() or not (is_other or is_of_keras_3(path)):
        return path
    made = pathlib.Path(folder, "model.keras")
    open_model(path).save(made)
    return made


def _examples(
    predictor: Any, file: pathlib.Path, args: argparse.Namespace, terminal: Terminal
) -> tuple[list[str], Any]:
    """Names of the examples, and what the file takes."""
    from tfkd.recipes import token_models

    if len(predictor.inputs) != 1:
        inputs = ", ".join(port.name for port in predictor.inputs)
        raise ValueError(f"The file has several inputs ({inputs}): use tfkd.runtime.Predictor.")
    port = predictor.inputs[0]
    if all(name.endswith(".npy") for name in args.inputs):
        arrays = [_array(name) for name in args.inputs]
        names = [
            f"{name}[{row}]"
            for name, array in zip(args.inputs, arrays, strict=True)
            for row in range(len(array))
        ]
        x = np.concatenate(arrays)
        _check_range(x, port.limits, terminal)
        return names, x
    encode = predictor.encoder or token_models.beside(args.file)
    if encode is not None or port.dtype == object:
        texts = _texts(args.inputs)
        if encode is not None:
            return texts, encode(texts)
        return texts, np.array(texts, object).reshape(-1, *[1] * (len(port.shape) - 1))
    if len(port.shape) == 4:
        return _images(predictor, file, args, terminal)
    shape = "×".join(map(str, port.shape[1:]))
    raise ValueError(
        f"The file takes {shape} numbers an example, neither images nor texts (it holds no "
        "tokenizer): pass arrays as .npy files, (N, ...)."
    )


def _array(name: str) -> np.ndarray:
    try:
        return np.load(name, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{name} is no .npy file of numbers: {error}") from error


def _check_range(x: np.ndarray, limits: Any, terminal: Terminal) -> None:
    """Warns of numbers that a quantized input hardly tells apart, or cuts off."""
    if limits is None or x.dtype.kind != "f" or not x.size:
        return
    low, high, width = float(x.min()), float(x.max()), limits[1] - limits[0]
    too_small = max(-low, high) < 0.02 * max(-limits[0], limits[1])
    if too_small or low < limits[0] - 0.5 * width or high > limits[1] + 0.5 * width:
        terminal.warn(
            f"the arrays hold numbers from {low:.3g} to {high:.3g}, and the input of the file from "
            f"{limits[0]:.3g} to {limits[1]:.3g}: scale them as the file takes them."
        )


def _texts(inputs: Sequence[str]) -> list[str]:
    """The texts, and the lines of .txt files.

    Raises:
        FileNotFoundError: for the name of a file that is not there, or of an image.
    """
    from tfkd.data.layout import EXTENSIONS

    texts: list[str] = []
    for text in inputs:
        if text.endswith(".txt") and os.path.isfile(text):
            lines = pathlib.Path(text).read_text(encoding="utf-8").splitlines()
            texts += [line for line in lines if line.strip()]
        elif pathlib.Path(text).suffix.lower() in EXTENSIONS | {".txt"} and len(text.split()) == 1:
            seen = "is no .txt file of texts" if os.path.exists(text) else "is not there"
            raise FileNotFoundError(f"The file takes texts, and {text!r} {seen}.")
        else:
            texts.append(text)
    return texts


def _images(
    predictor: Any, file: pathlib.Path, args: argparse.Namespace, terminal: Terminal
) -> tuple[list[str], Any]:
    from tfkd.data.folder import read_image

    height, width, channels = predictor.inputs[0].shape[1:]
    size = (height, width) if min(height, width) > 0 else None
    files = _image_files(args.inputs)
    read = [read_image(file, channels if channels in (1, 3) else 3, size) for file in files]
    shapes = {image.shape for image in read}
    if len(shapes) > 1:
        raise ValueError(f"The file takes images of any size, but all of one: {sorted(shapes)}.")
    scale = _scaling(predictor, file, args, terminal)
    return [str(file) for file in files], scale(np.stack(read))


def _scaling(
    predictor: Any, file: pathlib.Path, args: argparse.Namespace, terminal: Terminal
) -> Any:
    """The scaling of pixels: that of the flag, the file or its run, or what its input fits."""
    from tfkd.networks import keras_files
    from tfkd.recipes.scaling import AUTO, Scaling, for_limits, from_json, named

    if args.preprocess != AUTO:
        return named(args.preprocess)
    if predictor.scaling is not None:
        return Scaling("as in the file", *predictor.scaling)
    kept = pathlib.Path(args.file).with_name("preprocess.json")
    if kept.is_file() and kept.with_name("run.json").is_file():  # beside the models of a run
        known = from_json(json.loads(kept.read_text(encoding="utf-8")))
        if known.to_pixels is not None:
            return known
        raise ValueError(
            f"The model of this run takes no pixels as they are in image files: {known.why}. Pass "
            "arrays of such numbers as .npy files, or say by --preprocess how pixels become them."
        )
    if keras_files.classes(file) & {"Rescaling", "Normalization"}:
        return named("none")  # The model scales pixels itself.
    found = for_limits(predictor.inputs[0].limits)
    terminal.warn(
        f"the file does not say how it takes pixels: {found}. If the classes are wrong, pass "
        "--preprocess."
    )
    return found


def _classes(
    names: Sequence[str], chances: np.ndarray, labels: Sequence[str] | None, top: int, note: str
) -> Listing:
    """The classes with the highest probabilities."""
    rows = []
    for name, row in zip(names, chances, strict=True):
        for kind in np.argsort(-row, kind="stable")[:top]:
            label = str(kind) if labels is None else labels[kind]
            rows.append((name, label, round(float(row[kind]), 4)))
    return Listing(("example", "class", "probability"), rows, 2, note)


def _numbers(names: Sequence[str], outputs: dict[str, np.ndarray], note: str = "") -> Listing:
    """The first numbers of outputs that are no classes."""
    rows = []
    for row, name in enumerate(names):
        for output, values in outputs.items():
            flat = np.ravel(values[row])
            shown = [
                round(float(v), 4) if flat.dtype.kind == "f" else str(v) for v in flat[:_SHOWN]
            ]
            rows.append((name, output, "×".join(map(str, values.shape[1:])) or "1", shown))
    return Listing(("example", "output", "shape", "first values"), rows, 4, note)
