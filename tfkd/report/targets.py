"""Benchmark targets: opens models and files, and prepares calls for timing and scoring.

A model is a `tf_keras` model, the path of a file that `tfkd.runtime.Predictor`
runs, a `Predictor`, a Keras 3 model, which is converted, or any other callable from
examples to outputs. Examples are an array (N, ...), or a dict of such arrays by
input name.
"""

from __future__ import annotations

import os
import pathlib
import re
import textwrap
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tf_keras as keras

from tfkd import checks, example_inputs
from tfkd.example_inputs import length, take
from tfkd.networks.accept import in_float64, is_keras_3, refuse_distiller
from tfkd.networks.layer_parts import flat_layers
from tfkd.report import inference
from tfkd.types import Data, Structure

CHUNK = 256  # examples per call when all outputs are computed

EXPECTED = "a tf_keras model, a path, a Predictor or a callable"


def checked_models(models: Any) -> Mapping[str, Any]:
    """Accepts a non-empty dict of name → model."""
    checks.instance("models", models, Mapping, "a dict of name → model or path")
    if not models:
        raise checks.value_error("models", "at least one model", models)
    for name in models:
        checks.instance("models", name, str, "names that are strings")
    return models


def checked_model(name: str, model: Any, expected: str = EXPECTED) -> Any:
    """Accepts one model; a string becomes a path, which must exist."""
    if isinstance(model, (str, os.PathLike)):
        path = pathlib.Path(model)
        if not path.exists():
            raise checks.value_error(f"models[{name!r}]", "a file that exists", str(path))
        return path
    refuse_distiller(f"models[{name!r}]", model)
    if not callable(model):
        raise checks.type_error(f"models[{name!r}]", expected, model)
    return model


def examples(data: Data) -> example_inputs.Batch:
    """The examples for measuring a model, in the structure of its inputs."""
    found = example_inputs.arrays("data", data, part="test", prepared=True)
    return found._replace(x=example_inputs.mapped(np.asarray, found.x))


def converted(name: str, model: Any, x: Structure) -> tuple[Any, str]:
    """A model that LiteRT can run, and a note ("" if nothing had to be converted).

    Keras 3 models are converted to tf_keras, and float64 models to float32. A model that
    cannot be converted is returned unchanged, with the reason in the note.
    """
    import tfkd

    if isinstance(model, keras.Model) and in_float64(model):
        made = tfkd.frozen_copy(model, dtype="float32")
        return made, f"{name} computes in float64 and was run as its copy in float32."
    if not is_keras_3(model):
        return model, ""
    from tfkd.export.named_function import check_exportable

    _refuse_stateful(model)
    try:
        made = tfkd.from_keras3(model, verify=take(x, slice(8)))
        check_exportable(made)
    except Exception as error:  # conversion of arbitrary Keras 3 models can fail in any way
        why = textwrap.shorten(str(error), 300, placeholder=" ...")
        return model, (
            f"{name} is a Keras 3 model that tfkd.from_keras3 did not convert to one that LiteRT "
            f"runs ({why}), so Keras 3 ran it, with training=False."
        )
    return made, f"{name} is a Keras 3 model, converted by tfkd.from_keras3."


def opened(
    name: str,
    model: Any,
    threads: int,
    folder: pathlib.Path,
    batch: int = 1,
    x: Structure | None = None,
) -> Any:
    """The target to call for a model: a `Predictor`, or the callable in inference mode.

    Args:
        name: the model's name.
        model: from `checked_model`.
        threads: threads of a Predictor that is created here.
        folder: folder for the file of a Keras model: float32 TFLite, or int8 for a
            `QuantizedModel`. A model that TFLite can't hold becomes a SavedModel.
        batch: batch size of the TFLite file.
        x: examples, with which a compiled module is verified.
    """
    from tfkd import runtime

    if isinstance(model, keras.Model):
        _refuse_stateful(model)
        model = _file_of(name, model, folder / f"{len(list(folder.iterdir()))}", batch)
    if isinstance(model, pathlib.Path):
        return runtime.Predictor(model, threads)
    if is_predictor(model):
        return model
    return inference.prepared(model, take(x, slice(4)))


def _file_of(name: str, model: keras.Model, path: pathlib.Path, batch: int) -> pathlib.Path:
    """Exports a model to TFLite, or else, with a warning, as a SavedModel."""
    from tfkd import export

    try:
        return export.to_tflite(model, path.with_suffix(".tflite"), batch_size=batch).path
    except ValueError as error:
        try:
            made = export.to_saved_model(model, path).path
        except ValueError:
            raise ValueError(f"`models[{name!r}]` can't be measured. {error}") from error
        checks.warn(
            f"`models[{name!r}]` can't become a TFLite file, so its size and times are those of a "
            "SavedModel, which TensorFlow runs. "
            + textwrap.shorten(str(error), 300, placeholder=" ...")
        )
        return made


def _refuse_stateful(model: Any) -> None:
    """Raises ValueError for stateful recurrent layers of Keras 2 or 3."""
    for layer in flat_layers(model):
        if hasattr(layer, "return_sequences") and getattr(layer, "stateful", False):
            fix = (
                "Its outputs depend on earlier calls, so nothing can be compared. Build it with "
                "stateful=False and copy the weights."
            )
            raise checks.value_error("model", "layers with stateful=False", layer.name, fix)


def is_predictor(target: Any) -> bool:
    """True for a `Predictor`, whose `run_one` can be timed without checks and conversions."""
    return hasattr(target, "run_one") and hasattr(target, "inputs")


def fixed_batch(target: Any) -> int | None:
    """The batch size that a target requires; None: any."""
    if not is_predictor(target):
        return None
    sizes = [port.shape[0] for port in target.inputs if len(port.shape)]
    return next((int(size) for size in sizes if size > 0), None)


def call(name: str, target: Any, x: Structure, batch: int) -> Callable[[], Any] | None:
    """A call without arguments on the first `batch` examples; None if the batch size is fixed.

    The examples are converted to the file's input dtype beforehand, and repeated if there
    are fewer. The target is called once, to resize its inputs and to detect invalid ones.
    """
    if fixed_batch(target) not in (None, batch):
        return None
    some = take(x, np.arange(batch) % length("data", x))
    _run(name, target, some)
    if not is_predictor(target):
        return lambda: target(some)
    codes = target.encode(some)
    return lambda: target.run_one(*codes)


def _run(name: str, target: Any, x: Any) -> Any:
    """Calls the target; input errors of a Predictor are prefixed with the model's name."""
    try:
        return target(x)
    except (TypeError, ValueError) as error:
        if not is_predictor(target):
            raise
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"`models[{name!r}]` does not run on these examples. {error}") from error


def outputs(name: str, target: Any, x: Structure, output: str | None = None) -> np.ndarray:
    """The only output, or the one named `output`, for all examples, computed in chunks."""
    if isinstance(target, keras.Model):
        found = target.predict(x, batch_size=CHUNK, verbose=0)
        if isinstance(found, (list, tuple)):
            found = dict(zip(target.output_names, found, strict=True))
        return _chosen(name, found, output)
    parts = []
    for start in range(0, length("data", x), CHUNK):
        some = take(x, slice(start, start + CHUNK))
        size = length("data", some)
        parts.append(_chosen(name, _run(name, target, some), output))
        if parts[-1].shape[:1] != (size,):
            expected = f"{size} outputs for as many examples"
            raise checks.value_error(f"models[{name!r}]", expected, parts[-1])
    return np.concatenate(parts)


def _chosen(name: str, found: Any, output: str | None) -> np.ndarray:
    """Of several outputs the one named `output`.

    Names in files are those of Keras with "_" for what is no letter or digit.
    """
    if isinstance(found, (list, tuple)) and found and hasattr(found[0], "shape"):
        if len(found) > 1:
            fix = "Pass a function that returns the one that is to be scored."
            received = f"{len(found)} outputs without names"
            raise checks.value_error(f"models[{name!r}]", "a model of one output", received, fix)
        (found,) = found
    if not isinstance(found, Mapping):
        return np.asarray(found)
    if len(found) == 1:
        return np.asarray(*found.values())
    if output is None:
        fix = f"Name one: compare(..., output={next(iter(found))!r})."
        expected = "a model of one output, or `output`"
        raise checks.value_error(f"models[{name!r}]", expected, list(found), fix)
    for key, value in found.items():
        if re.sub(r"\W", "_", key) == re.sub(r"\W", "_", output):
            return np.asarray(value)
    expected = f"an output of `models[{name!r}]`: {', '.join(map(repr, found))}"
    raise checks.value_error("output", expected, output, checks.near(output, list(found)))


def size_of(target: Any) -> int | None:
    """Size in bytes of the file, or of all files in the folder; None for a callable."""
    path = getattr(target, "path", None) if is_predictor(target) else None
    if path is None:
        return None
    path = pathlib.Path(path)
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    return sum(file.stat().st_size for file in files)


def kind_notes(kinds: Mapping[str, str], models: Mapping[str, Any]) -> list[str]:
    """Notes on targets that were not timed as files.

    Args:
        kinds: name → runtime, from `inference.kind_of`.
        models: name → model or function.
    """
    own = [n for n, model in models.items() if not isinstance(model, (keras.Model, pathlib.Path))]
    said = {
        "Python": ("a Python function, timed as it is", "Python functions, timed as they are"),
        "TensorFlow": ("a compiled TensorFlow function", "compiled TensorFlow functions"),
    }
    saved = [n for n, model in models.items() if isinstance(model, keras.Model)]
    saved = [name for name in saved if kinds.get(name) == "TensorFlow"]
    notes = [f"{name}: a SavedModel, as TFLite can't hold it; TensorFlow ran it." for name in saved]
    for kind, (one, several) in said.items():
        names = [name for name in own if kinds.get(name) == kind]
        if names:
            notes.append(f"{', '.join(names)}: {one if len(names) == 1 else several}.")
    return notes


def threads_text(threads: int) -> str:
    """Returns "one thread" or "4 threads"."""
    return "one thread" if threads == 1 else f"{threads} threads"
