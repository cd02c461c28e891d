"""Serialization of quantized models: atomic writes, verified reads, bit-exact restoration.

Keras can't load a model with tfmot's wrappers from a `.keras` file, and loads it from a
SavedModel silently wrong if the custom object scope is missing. So a file stores what the
model was made from: the config of the flat float model, the decisions, and all weights and
ranges. Loading repeats the construction with the stored decisions, so that a later version
of tfkd, which might decide differently, restores the same model.
"""

from __future__ import annotations

import json
import pathlib
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
import tf_keras as keras

from tfkd import artifacts, checks
from tfkd.networks import keras_files, layer_state
from tfkd.networks.accept import check_finite
from tfkd.quantization.quantized_model import QuantizedModel, check_quantized
from tfkd.quantization.quantizing import rebuild
from tfkd.quantization.report import Decision
from tfkd.types import Path

FORMAT = "tfkd quantized model, 1"
_DOCUMENT = "document"


def save(q: QuantizedModel, path: Path) -> pathlib.Path:
    """Writes a quantized model to one file, with `<path>.manifest.json` beside it.

    The file is an `.npz` archive without pickled objects. It contains neither the optimizer
    nor other settings of `compile`.

    Args:
        q: a model from `quantize`, calibrated or not.
        path: path of the file, with any suffix. Missing directories are created.

    Returns:
        The path.

    Raises:
        TypeError: if `q` is not a `QuantizedModel` (of a Distiller pass
            `distiller.student`).
        ValueError: if a layer has state outside of its config and its weights, or weights
            are NaN or infinite.
        OSError: if `path` can't be written; an existing file is then unchanged.

    Example:
        >>> import pathlib, tempfile, numpy as np, tfkd
        >>> x = np.random.default_rng(0).normal(size=(4, 8, 8, 1)).astype("float32")
        >>> q = tfkd.quantization.quantize(tfkd.models.resnet(8, 10, (8, 8, 1), (4, 8)))
        >>> tfkd.quantization.calibrate(q, x)
        >>> path = tfkd.quantization.save(q, pathlib.Path(tempfile.mkdtemp()) / "q.npz")
        >>> again = tfkd.quantization.load(path)
        >>> bool((again(x).numpy() == q(x).numpy()).all())
        True
    """
    check_quantized("q", q)
    check_finite("q", q)
    recipe = {**q.recipe, "decisions": q.report.to_dict()["rows"]}
    document = {
        "format": FORMAT,
        "float_model": q.float_config,
        "recipe": recipe,
        "weights": [weight.name for weight in q._stored_weights],
    }
    layer_state.check_file(q)
    arrays: dict[str, Any] = {_DOCUMENT: np.array(json.dumps(document))}
    arrays |= {_key(number): weight.numpy() for number, weight in enumerate(q._stored_weights)}
    with artifacts.atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)
    artifacts.write_manifest(path, recipe, model=q.name, calibrated=q.calibrated)
    return pathlib.Path(path)


def load(
    path: Path, custom_objects: Mapping[str, Any] | None = None, *, safe_mode: bool = True
) -> QuantizedModel:
    """Reads a quantized model; its outputs are bit-identical to those of the saved model.

    Args:
        path: a file written by `save`, with its manifest beside it.
        custom_objects: {name: class or function} for user-defined layers that are not
            registered with Keras.
        safe_mode: refuse Lambda layers, which execute code from the file. Set it to False
            for files that you trust.

    Returns:
        The `QuantizedModel`, not compiled; calibrated if it was when saved.

    Raises:
        ValueError: if the file or its manifest is missing, damaged, or of another kind; or
            the model can't be rebuilt.
    """
    artifacts.verify(path)
    document, arrays = _read(path)
    try:
        with keras.utils.custom_object_scope({**keras_files.UNNAMED, **(custom_objects or {})}):
            flat = _float_model(document["float_model"], safe_mode)
            rows = [Decision(**row) for row in document["recipe"]["decisions"]]
            q = rebuild(flat, rows, document["recipe"])
    except Exception as error:
        if safe_mode:
            config = json.loads(document["float_model"])
            keras_files.refuse_code("path", str(path), config, error)
        fix = f"Give your own layers as `custom_objects`. Keras says: {checks.in_short(error)}"
        expected_model = "a model that can be built again"
        raise checks.value_error("path", expected_model, str(path), fix) from error
    weights = q._stored_weights
    expected, received = [w.shape.as_list() for w in weights], [list(a.shape) for a in arrays]
    # The weights of a TF-IDF lookup layer have an open shape.
    fits = [w.shape.is_compatible_with(a.shape) for w, a in zip(weights, arrays, strict=False)]
    if len(expected) != len(received) or not all(fits):
        fix = f"It holds weights of the shapes {received}, and the model has {expected}."
        raise checks.value_error("path", "the weights of its model", str(path), fix)
    for weight, value in zip(weights, arrays, strict=True):
        weight.assign(value)
    layer_state.finalize(q)
    return q


def _key(number: int) -> str:
    return f"weight_{number:05d}"


def _read(path: Path) -> tuple[dict[str, Any], list[np.ndarray]]:
    """The contents of a file: its document, and the weights in order."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            document = json.loads(str(stored[_DOCUMENT]))
            if document["format"] == FORMAT:
                count = len(document["weights"])
                return document, [stored[_key(number)] for number in range(count)]
        problem = f"Its format is {document['format']!r}; this version reads {FORMAT!r}."
    except (KeyError, TypeError, ValueError, OSError, zipfile.BadZipFile) as error:
        problem = f"It can't be read as one: {error}."
    raise checks.value_error("path", "a file of tfkd.quantization.save", str(path), problem)


def _float_model(text: str, safe_mode: bool) -> keras.Model:
    from tfkd.keras_internals import SafeModeScope

    with SafeModeScope(safe_mode):
        return keras.models.model_from_json(text)
