"""Export to a SavedModel for serving: plain TensorFlow operations, without Keras.

The folder is written under a temporary name and renamed once it is complete. TensorFlow
Serving expects numbered versions: write to `models/flowers/1`, then `models/flowers/2`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import pathlib
import secrets
import shutil
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from tfkd import artifacts, checks
from tfkd.export import checking
from tfkd.export.converter import quiet
from tfkd.export.named_function import NamedFunction, exportable, is_quantized
from tfkd.export.parity import ExportReport, compared_rows, measure
from tfkd.export.thresholds import Changes, thresholds_for
from tfkd.formats.batching import chunks, joined
from tfkd.formats.saved_model import GRAPH_FILE, SIGNATURE, file_hashes
from tfkd.types import Data, Path

# Batch size for running the reloaded model.
_CHUNK = 64
_WHAT = "The SavedModel does not match the Keras model"


@dataclasses.dataclass(frozen=True)
class SavedModelReport(ExportReport):
    """An `ExportReport` of a SavedModel; `path` is the folder, `bytes` the size of its files."""

    place = "folder"

    def _about(self) -> list[tuple[str, str]]:
        return []

    def _compared(self) -> list[tuple[str, str]]:
        return compared_rows(self.numbers)


def to_saved_model(
    model: keras.Model,
    path: Path,
    verify: Data | bool = True,
    *,
    thresholds: Changes | None = None,
    keep_failed: bool = False,
) -> SavedModelReport:
    """Exports `model` as a SavedModel and, with `verify`, verifies it in TensorFlow.

    The signature `serving_default` has the input and output names of the model and
    an open batch size. The folder loads with `tf.saved_model.load` and in TensorFlow
    Serving, without tfkd and Keras. A quantized model is exported with fake
    quantization in float. Other than TFLite and ONNX files it may take and return texts
    and hold lookup tables (`StringLookup`, `TextVectorization`). A manifest in the folder
    holds the SHA-256 of every file.

    Args:
        model: a built `tf_keras.Model`, or a calibrated model of
            `tfkd.quantization`.
        path: the folder to create. An existing SavedModel is replaced once the new
            one is complete.
        verify: True, False or at least two examples; see `to_tflite`.
        thresholds: changes to the thresholds of `verify`; see `to_tflite`.
        keep_failed: whether to keep a folder that fails verification; the error is
            raised in either case.

    Returns:
        A `SavedModelReport`.

    Raises:
        TypeError: if `model` is not a plain tf_keras model.
        ValueError: if an argument is wrong, there is something else at `path`, a lookup
            table is held by no layer, or the folder fails its verification.
        OSError: if `path` cannot be written.

    Example:
        >>> import os, tempfile, numpy as np, tensorflow as tf, tf_keras as keras
        >>> from tfkd import export
        >>> model = keras.Sequential([keras.layers.Dense(3, input_shape=(4,), name="logits")])
        >>> path = os.path.join(tempfile.mkdtemp(), "1")
        >>> report = export.to_saved_model(model, path, verify=np.eye(4, dtype="float32"))
        >>> serve = tf.saved_model.load(path).signatures["serving_default"]
        >>> sorted(serve(tf.ones([2, 4])))
        ['logits']
    """
    folder = _target(path)
    source, plain, mode = _servable(model)
    limits = thresholds_for(mode, thresholds, source.outputs)
    examples = checking.examples(verify, source, plain)
    numbers: dict[str, Any] = {}
    with _atomic_folder(folder) as temporary:
        _save(plain, temporary)
        compare = functools.partial(_compare, source, temporary)
        failed = checking.checked(examples, compare, limits, numbers)
        if failed and not keep_failed:
            raise checking.failure(_WHAT, failed, "Nothing was left.")
        files = file_hashes(temporary)
        recipe = {"format": "saved_model", "model": source.model.name, **source.order()}
        recipe["thresholds"] = limits.recorded()
        artifacts.write_manifest(temporary / GRAPH_FILE, recipe, files=files, numbers=numbers)
    if failed:
        raise checking.failure(_WHAT, failed, f"The folder was kept: {folder}.")
    size = sum(entry["bytes"] for entry in files.values())
    return SavedModelReport(folder, size, mode, "float32", numbers)


def _target(path: Path) -> pathlib.Path:
    checks.instance("path", path, (str, os.PathLike), "a path")
    folder = pathlib.Path(path)
    taken = folder.exists() and not (folder / GRAPH_FILE).is_file()
    if not folder.name or (taken and not (folder.is_dir() and not any(folder.iterdir()))):
        fix = "Something else is there; it is left alone."
        raise checks.value_error("path", "a new folder or a SavedModel", str(path), fix)
    return folder


def _servable(model: keras.Model) -> tuple[NamedFunction, NamedFunction, str]:
    """Returns (function to compare with, function to save, mode of the thresholds)."""
    target = "tensorrt" if getattr(model, "target", None) == "tensorrt" else "tflite"
    graph, plain = exportable(model, target, texts=True)
    return graph, plain, "quantized" if is_quantized(model) else "float32"


@contextlib.contextmanager
def _atomic_folder(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a temporary folder that replaces `folder` if the block ends without an error."""
    token = secrets.token_hex(8)
    temporary = folder.parent / f".{folder.name}.{token}.tmp"
    old = folder.parent / f".{folder.name}.{token}.old"
    try:
        temporary.mkdir(parents=True)
    except OSError as error:
        text = f"cannot write {folder}: {error.strerror or error}; nothing was changed"
        raise OSError(error.errno, text) from error
    try:
        yield temporary
        # The data must be on disk before the rename, or a power failure may leave empty files.
        for file in temporary.rglob("*"):
            if file.is_file():
                with file.open("rb+") as handle:
                    os.fsync(handle.fileno())
        if folder.exists():
            os.replace(folder, old)
        try:
            os.replace(temporary, folder)
        except OSError:
            if old.exists():
                os.replace(old, folder)
            raise
    finally:
        for left in (temporary, old):
            shutil.rmtree(left, ignore_errors=True)


def _save(graph: NamedFunction, folder: pathlib.Path) -> None:
    module = graph.module(None)
    try:
        with quiet():
            tf.saved_model.save(module, os.fspath(folder), signatures={SIGNATURE: module.forward})
    except AssertionError as error:  # A table that no attribute of a layer or model holds.
        if "untracked" not in str(error):
            raise
        expected = "layers that hold their tables and variables as attributes"
        received = f"{graph.model.name!r}, which uses one that no layer holds"
        fix = "Assign it in the layer's constructor, `self.table = ...`; a Lambda can't hold one."
        raise checks.value_error("model", expected, received, fix) from error
    except tf.errors.NotFoundError as error:
        expected, received = "vocabulary files that are still there", error.message
        raise checks.value_error("model", expected, received) from error


def _compare(
    graph: NamedFunction, folder: pathlib.Path, images: dict[str, np.ndarray]
) -> tuple[dict[str, Any], dict[str, int]]:
    """Runs SavedModel and Keras model on the same inputs; returns (numbers, output ranks)."""
    expected = graph.predict(images)
    parts = chunks(images, _CHUNK)
    with quiet():
        serve = tf.saved_model.load(os.fspath(folder)).signatures[SIGNATURE]
        received = joined(serve(**{k: tf.constant(v) for k, v in part.items()}) for part in parts)
    ranks = {name: value.ndim for name, value in expected.items()}
    return measure(expected, received, {}), ranks
