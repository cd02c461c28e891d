"""`open_model`: a Keras model from a file, a folder or the name of an architecture."""

from __future__ import annotations

import inspect
import json
import os
import pathlib
import zipfile
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf
import tf_keras as keras

from tfkd import checks, models
from tfkd.formats.saved_model import GRAPH_FILE
from tfkd.networks import keras_files
from tfkd.networks.frozen_copy import frozen_copy
from tfkd.networks.layer_parts import flat_layers

ROLES = ("model", "student", "teacher")
_FILES = (".keras", ".h5", ".hdf5")
_OTHER_PRECISIONS = ("float16", "bfloat16", "float64")
_EXPORTED = (".tflite", ".onnx", ".engine", ".plan")
# Models of tfkd by the beginning of their names, and what may stand behind the colon.
FORMS = {
    "resnet": "resnetDEPTH[:width,...], such as resnet20 or resnet8:8,16,32",
    "vgg16": "vgg16[:width,...], one width for each of its stages",
    "mlp": "mlp:units,..., dense layers, such as mlp:64",
    "text_mlp": "text_mlp[:width,hidden,...]",
    "text_transformer": "text_transformer[:layers,width,heads]",
    "ssd": "ssd:PRESET or ssd:width,width,width,width,width, such as ssd:student",
}


def open_model(
    name: str | os.PathLike,
    *,
    role: str = "model",
    num_classes: int = 10,
    input_shape: Sequence[int] = (32, 32, 3),
    vocab_size: int = 10_000,
    max_length: int = 64,
) -> Any:
    """Opens a model by path, or builds one by name.

    Args:
        name: a `.keras` file of Keras 2 or Keras 3 (which is converted and compared), a
            `.h5` file, the folder of a SavedModel, or an architecture as `build` takes it.
        role: "model" and "student" are to be changed or trained, and so need layers;
            "teacher" only runs, and may be a SavedModel.
        num_classes, input_shape, vocab_size, max_length: for `build`; files have their own.

    Returns:
        A tf_keras model, not compiled. For a SavedModel that Keras did not write the
        restored object, which `tfkd.Distiller` takes as a teacher.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is no model, needs Python code, or does not fit the role; if
            there is no such architecture.
        ImportError: if the file is of Keras 3, and that can't be imported.

    Example:
        >>> from tfkd.recipes.models import open_model
        >>> open_model("resnet8:4,8,16").count_params()
        5382
    """
    checks.one_of("role", role, ROLES)
    text = os.fspath(checks.instance("model", name, (str, os.PathLike), "a path or a name"))
    path = pathlib.Path(text)
    if path.is_dir():
        return _in_float32(_folder(path, role), text)
    if path.suffix.lower() in _EXPORTED:
        what = "an exported file, which can be run and measured but not changed"
        raise ValueError(
            f"{text} is {what}. Pass the Keras model that it was made from (.keras or .h5)."
        )
    if path.suffix.lower() in _FILES:
        if not path.is_file():
            raise FileNotFoundError(f"There is no file {text!r}.{_beside(path)}")
        read = _keras if path.suffix.lower() == ".keras" else _hdf5
        return _in_float32(read(path), text)
    if path.is_file():
        expected = "a .keras or .h5 file, the folder of a SavedModel, or an architecture"
        raise checks.value_error("model", expected, text, "It is a file of another kind.")
    return build(text, num_classes, input_shape, vocab_size, max_length)


def _in_float32(model: Any, name: str) -> Any:
    """A model of mixed or double precision with the same weights in float32, as files need."""
    if not isinstance(model, keras.Model):
        return model
    found = {one.compute_dtype for one in flat_layers(model)}
    others = found.intersection(_OTHER_PRECISIONS)
    if not others:
        return model
    checks.warn(
        f"{name} computes in {', '.join(sorted(others))}: it is taken in float32, with the same "
        "weights."
    )
    made = frozen_copy(model, dtype="float32")
    for one, copy in zip(flat_layers(model), flat_layers(made), strict=True):
        copy.trainable = one.trainable
    return made


def _beside(path: pathlib.Path) -> str:
    there = [p.name for p in path.parent.glob("*") if p.suffix.lower() in _FILES]
    near = checks.near(path.name, there)
    return f" {near}" if near else ""


def _folder(path: pathlib.Path, role: str) -> Any:
    """A model of Keras from a SavedModel that holds one, else the restored object."""
    if not (path / GRAPH_FILE).is_file():
        files = sorted(p.name for p in path.iterdir() if p.suffix.lower() in _FILES)
        fix = f"It holds {', '.join(files[:5])}: pass one of them." if files else None
        expected = f"the folder of a SavedModel, with a {GRAPH_FILE}"
        raise checks.value_error("model", expected, str(path), fix)
    if (path / "keras_metadata.pb").is_file():
        try:
            found = keras.models.load_model(path, compile=False)
        except Exception as error:  # Keras raises errors of many kinds.
            return _restored(path, role, f" Keras says: {checks.in_short(error)}")
        if hasattr(found, "layers"):
            return found
    return _restored(path, role, "")


def _restored(path: pathlib.Path, role: str, why: str) -> Any:
    if role != "teacher":
        raise ValueError(
            f"{path} is a SavedModel: a graph of operations without Keras layers, so it can't be "
            f"trained, pruned or quantized.{why} Use it as a teacher (--teacher={path}) with a "
            "student of its own, or save the original model as .keras."
        )
    try:
        return tf.saved_model.load(str(path))
    except Exception as error:
        fix = f"TensorFlow says: {checks.in_short(error)}"
        raise checks.value_error("model", "a SavedModel", str(path), fix) from error


def is_of_keras_3(path: pathlib.Path) -> bool:
    """Whether a file is a `.keras` file that Keras 3 wrote."""
    return path.suffix.lower() == ".keras" and _keras_version(path).startswith("3.")


def _keras(path: pathlib.Path) -> keras.Model:
    if is_of_keras_3(path):
        return _keras_3(path)
    try:
        return keras_files.load("model", path)
    except ValueError as error:
        if "custom_objects" not in str(error):
            raise
        raise ValueError(
            f"{error} On the command line: --imports=MODULE, the Python module that registers them."
        ) from error


def _keras_3(path: pathlib.Path) -> keras.Model:
    # Importing it takes seconds.
    from tfkd.interop.converting import load_keras3

    return load_keras3(path)


def _keras_version(path: pathlib.Path) -> str:
    """The version of Keras that wrote a `.keras` file; "" if it does not say."""
    try:
        with zipfile.ZipFile(path) as archive:
            return str(json.loads(archive.read("metadata.json")).get("keras_version", ""))
    except zipfile.BadZipFile as error:
        fix = "It is no zip archive, which a .keras file is: was it copied as a whole?"
        raise checks.value_error("model", "a .keras file", str(path), fix) from error
    except (KeyError, ValueError):
        return ""


def _hdf5(path: pathlib.Path) -> keras.Model:
    import h5py

    try:
        with h5py.File(path, "r") as file:
            version, config = (file.attrs.get(key) for key in ("keras_version", "model_config"))
    except OSError as error:
        fix = f"h5py says: {checks.in_short(error)}"
        raise checks.value_error("model", "an HDF5 file", str(path), fix) from error
    if config is None:
        raise ValueError(
            f"{path} holds weights and no model. Build the model in Python, call "
            "model.load_weights(path), and save it as .keras."
        )
    if _text(version).startswith("3."):
        return _keras_3(path)
    keras_files.refuse_code("model", str(path), json.loads(_text(config)), ValueError())
    try:
        return keras.models.load_model(path, custom_objects=keras_files.UNNAMED, compile=False)
    except Exception as error:  # Damaged files and unknown layers raise errors of many kinds.
        fix = f"It says: {checks.in_short(error)}"
        expected = "an .h5 file that tf_keras can load"
        raise checks.value_error("model", expected, str(path), fix) from error


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value or "")


def build(
    name: str,
    num_classes: int = 10,
    input_shape: Sequence[int] = (32, 32, 3),
    vocab_size: int = 10_000,
    max_length: int = 64,
) -> keras.Model:
    """Builds an architecture by name, with random weights and logits as outputs.

    Args:
        name: "resnet20", "resnet8:8,16,32", "vgg16:...", "mlp:64", "text_mlp:32,64",
            "text_transformer:2,128,4", "ssd:student"; or a network of
            `tf_keras.applications`, such as "MobileNetV2", and "MobileNetV2:imagenet" with
            its trained weights, which Keras downloads.
        num_classes: of the labels.
        input_shape: (height, width, channels) of images.
        vocab_size, max_length: of the tokens of a text model.

    Returns:
        A functional or Sequential model. A detector's anchors are
        `Anchors.small(input_shape[:2])`.

    Raises:
        ValueError: if there is no such architecture, or its numbers don't fit.

    Example:
        >>> from tfkd.recipes.models import build
        >>> build("mlp:64", num_classes=10, input_shape=(8, 8, 1)).count_params()
        4810
    """
    kind, _, rest = name.partition(":")
    if len(input_shape) != 3:
        if kind == "mlp":  # for examples of any shape
            return _mlp(_sizes(name, kind, rest), num_classes, tuple(input_shape), name)
        expected = "(height, width, channels), as this network takes images"
        raise checks.value_error("input_shape", expected, input_shape, "Try mlp:64.")
    shape = (input_shape[0], input_shape[1], input_shape[2])
    if network := _applications().get(kind.casefold()):
        return _application(network, rest, name, num_classes, shape)
    family = "resnet" if kind.startswith("resnet") else kind
    if family not in FORMS:
        networks = [network.__name__ for network in _applications().values()]
        known = [*FORMS, "resnet20", "resnet56", *networks]
        fix = checks.near(kind, known) or "There is no file of this name either."
        expected = f"a .keras or .h5 file, a SavedModel, or one of: {'; '.join(FORMS.values())}; "
        expected += "a network of tf_keras.applications, such as MobileNetV2"
        raise checks.value_error("model", expected, name, fix)
    if family == "ssd" and rest and not rest[0].isdigit():
        return models.ssd(rest, num_classes, shape[:2])
    sizes = _sizes(name, family, rest)
    if family == "resnet":
        depth = _sizes(name, family, kind.removeprefix("resnet"))
        if len(depth) != 1:
            raise checks.value_error("model", FORMS[family], name, "Try resnet20.")
        return models.resnet(depth[0], num_classes, shape, **_given(widths=sizes))
    if family == "vgg16":
        return models.vgg16(num_classes, shape, **_given(widths=sizes))
    if family == "mlp":
        return _mlp(sizes, num_classes, shape, name)
    if family == "ssd":
        return models.ssd(sizes or "student", num_classes, shape[:2])
    if family == "text_mlp":
        given = _given(width=sizes[:1] and sizes[0], hidden=sizes[1:])
        return models.text_mlp(vocab_size, num_classes, max_length, **given)
    given = dict(zip(("layers", "width", "heads"), sizes, strict=False))
    return models.text_transformer(vocab_size, num_classes, max_length, **given)


def _sizes(name: str, family: str, text: str) -> tuple[int, ...]:
    """ "8,16" → (8, 16); "" → ()."""
    try:
        return tuple(int(part) for part in text.split(",")) if text else ()
    except ValueError:
        raise checks.value_error("model", FORMS[family], name) from None


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value}


def _mlp(
    sizes: Sequence[int], num_classes: int, shape: tuple[int, ...], name: str
) -> keras.Sequential:
    if not sizes:
        raise checks.value_error("model", FORMS["mlp"], name, "Try mlp:64.")
    layers = [keras.layers.Dense(checks.positive_int("model", n), "relu") for n in sizes]
    head = keras.layers.Dense(num_classes, name="logits")
    return keras.Sequential([keras.Input(shape), keras.layers.Flatten(), *layers, head], name="mlp")


def _applications() -> dict[str, Callable[..., keras.Model]]:
    """Networks of `tf_keras.applications` by name in lower case."""
    found = vars(keras.applications).items()
    return {n.casefold(): f for n, f in found if inspect.isfunction(f) and n[0].isupper()}


def _application(
    network: Callable[..., keras.Model],
    weights: str,
    name: str,
    num_classes: int,
    shape: tuple[int, ...],
) -> keras.Model:
    kind = network.__name__
    if weights not in ("", "imagenet"):
        raise checks.value_error("model", f"{kind} or {kind}:imagenet", name)
    made = {"input_shape": shape, "classifier_activation": None}
    if not weights:
        return network(weights=None, classes=num_classes, **made)
    try:
        body = network(weights="imagenet", include_top=False, pooling="avg", input_shape=shape)
    except Exception as error:  # A bare Exception, if the weights can't be downloaded.
        raise OSError(f"Keras could not make {name!r}: {checks.in_short(error)}") from error
    head = keras.layers.Dense(num_classes, name="logits")(body.output)
    return keras.Model(body.input, head, name=kind.lower())
