"""`.keras` files: loading in Keras's safe mode, with errors that say what is refused and why."""

from __future__ import annotations

import json
import os
import pathlib
import re
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any

import tf_keras as keras

from tfkd import checks
from tfkd.keras_internals import LayerScale, StochasticDepth

# Layers of keras.applications that Keras does not register.
_KERAS_OWN = {"Layer", "Functional", "Sequential"}  # under these names in a config
UNNAMED = {"LayerScale": LayerScale, "StochasticDepth": StochasticDepth}


def load(
    name: str,
    path: pathlib.Path,
    custom_objects: Mapping[str, Any] | None = None,
    safe_mode: bool = True,
) -> keras.Model:
    """Loads the model of a `.keras` file, not compiled.

    Args:
        name: name of the argument that holds the path, for messages.
        path: the file.
        custom_objects: {name: class or function} for what is not registered with Keras.
        safe_mode: refuse Lambda layers with Python code in the file, which would be run.

    Raises:
        ValueError: if it has such layers, in safe mode; the message names them. If Keras
            can't load it.
    """
    text = os.fspath(path)
    known = {**UNNAMED, **(custom_objects or {})}
    try:
        return keras.models.load_model(
            text, custom_objects=known, compile=False, safe_mode=safe_mode
        )
    except Exception as error:  # Damaged files raise exceptions of many types.
        config = config_of(path)
        if safe_mode:
            refuse_code(name, text, config, error)
        names = {str(one.get("registered_name") or "Layer") for one in _objects(config)}
        found = keras.saving.get_registered_object
        lost = sorted(one for one in names - _KERAS_OWN if found(one, known) is None)
        layers = f"Your own {', '.join(lost)}" if lost else "Layers of your own"
        fix = f"It says: {checks.in_short(error)} {layers} must be in `custom_objects`."
        expected = "a .keras file that tf_keras can load"
        raise checks.value_error(name, expected, text, fix) from error


def refuse_code(name: str, path: str, config: Any, error: Exception) -> None:
    """Raises ValueError if a model's config has Lambda layers with Python code."""
    named = [one["config"] for one in _objects(config) if one["class_name"] == "Lambda"]
    found = list(dict.fromkeys(str(one.get("name")) for one in named if _holds_code(one)))
    if found:
        layers = ", ".join(map(repr, found[:5])) + (", ..." if len(found) > 5 else "")
        fix = (
            "It runs when the file is loaded. Replace it by a layer, such as Rescaling; or, if you "
            "trust it, load it in Python with safe_mode=False."
        )
        received = f"{path}, which holds the code of the Lambda layers {layers}"
        raise ValueError(
            f"`{name}`: expected a file without Python code, received {received}. {fix}"
        ) from error


def config_of(path: pathlib.Path) -> Any:
    """The config of the model in a file; None if it can't be read."""
    try:
        with zipfile.ZipFile(path) as archive:
            return json.loads(archive.read("config.json"))
    except (OSError, KeyError, ValueError, zipfile.BadZipFile):
        return None


def classes(path: pathlib.Path) -> set[str]:
    """Names of the classes of a file's layers, nested ones too; empty for other files."""
    return {one["class_name"] for one in _objects(config_of(path))}


def _objects(config: Any) -> Iterator[dict[str, Any]]:
    """The configs of objects in a config, with their classes, at any depth."""
    if isinstance(config, dict):
        if "class_name" in config and isinstance(config.get("config"), dict):
            yield config
        config = list(config.values())
    if isinstance(config, list):
        for item in config:
            yield from _objects(item)


def _holds_code(config: Mapping[str, Any]) -> bool:
    keys = ("function", "output_shape", "mask")
    if "lambda" in (config.get(f"{key}_type") for key in keys):
        return True
    values = [config.get(key) for key in keys]  # Keras 3 writes an object
    return any(isinstance(v, dict) and v.get("class_name") == "__lambda__" for v in values)


def compiled_loss(path: pathlib.Path) -> tuple[str, bool] | None:
    """The loss that the model in a file was compiled with, if it is one for one output.

    Args:
        path: a `.keras` file of Keras 2 or 3, or a whole-model `.h5` file.

    Returns:
        Its name in snake case, such as "binary_crossentropy", and its `from_logits`; None
        if there is none, or the file can't be read.
    """
    if path.suffix.lower() in (".h5", ".hdf5"):
        import h5py

        try:
            with h5py.File(path) as file:
                config = json.loads(file.attrs["training_config"])
        except (OSError, KeyError, ValueError):
            return None
    else:
        config = (config_of(path) or {}).get("compile_config") or {}
    loss = config.get("loss") if isinstance(config, dict) else None
    if isinstance(loss, dict) and "class_name" not in loss:
        loss = list(loss.values())  # by the names of outputs
    if isinstance(loss, list):
        loss = loss[0] if len(loss) == 1 else None
    if isinstance(loss, str):
        return _snake(loss), False
    if not isinstance(loss, dict):
        return None
    settings = loss.get("config")
    if not isinstance(settings, dict):  # a function, of which that is the name
        return _snake(str(settings)), False
    return _snake(str(loss["class_name"])), bool(settings.get("from_logits"))


def _snake(name: str) -> str:
    """ "BinaryCrossentropy" as "binary_crossentropy"."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name.rpartition(">")[2]).lower()
