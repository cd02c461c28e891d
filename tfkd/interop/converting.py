"""`from_keras3`: converts a Keras 3 model to an equivalent tf_keras model."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import tf_keras as keras

from tfkd import checks, example_inputs
from tfkd.interop.comparing import compare_outputs
from tfkd.interop.walking import Converter
from tfkd.networks import keras_files
from tfkd.types import Data, Path

if TYPE_CHECKING:
    import keras as keras_3

Custom = dict[type, Callable[[Any], Any]]


def from_keras3(
    model: keras_3.Model,
    *,
    verify: bool | Data = True,
    tolerance: float | None = None,
    custom_layers: Mapping[type, Callable[[Any], keras.layers.Layer]] | None = None,
) -> keras.Model:
    """Converts a Keras 3 model to tf_keras (Keras 2), which tfkd works with.

    Layers, nested models and operations (`x + y`, `keras.ops.mean(x)`) keep their names,
    weights keep their values and order, and shared layers remain shared. Then both models
    run on the same inputs, and their outputs must agree up to rounding. tf_keras computes
    batch normalization in one fused kernel and Keras 3 in several steps, and deep networks
    amplify such differences. So if the outputs differ by more than `tolerance`, they are
    compared again with the steps of Keras 3, and finally with both models rebuilt in
    float64 (slow, with four times the memory). The new model is not compiled, and the
    given one is not changed.

    Args:
        model: a built functional or Sequential Keras 3 model, with any backend.
        verify: True: compare the two models on random inputs; False: don't compare; or
            examples as the model takes them, in any form of `tfkd.example_inputs`:
            compare on these.
        tolerance: largest difference of an output that is not due to rounding, as a
            fraction of the output's range. None: 1e-5, or 1e-2 if the model computes in
            float16 or bfloat16. 0: none at all.
        custom_layers: Keras 3 layer class → function that takes such a layer and returns
            a tf_keras layer. Its weights are copied in order, and must have the same
            shapes. An entry for a layer class of Keras replaces the built-in conversion.

    Returns:
        A `tf_keras` model: Sequential if the given one is, else functional.

    Raises:
        TypeError: if `model` is not a Keras 3 model, or is a tf_keras model already.
        ImportError: if Keras 3 can't be imported.
        ValueError: if parts of the model have no counterpart (the message lists all of
            them), or if the outputs differ (the message gives the difference, as computed
            and in float64).

    Example:
        >>> import keras
        >>> import tfkd
        >>> x = keras.Input((8,), name="x")
        >>> y = keras.ops.relu(keras.layers.Dense(4, name="hidden")(x)) + 1.0
        >>> model = tfkd.from_keras3(keras.Model(x, y))
        >>> model.get_layer("hidden").kernel.shape.as_list()
        [8, 4]
    """
    module = _imported(model)
    custom = _custom(custom_layers)
    if tolerance is not None:
        checks.non_negative("tolerance", tolerance)
    made = _convert(model, module, custom)
    verify = example_inputs.to_verify(verify, example_inputs.inputs_of(made), strict=False)
    if verify is not False:
        batch = None if verify is True else example_inputs.packed(made, verify)
        compare_outputs(model, made, batch, tolerance, lambda: _in_float64(model, module, custom))
    return made


def load_keras3(path: Path, *, verify: bool | Data = True) -> keras.Model:
    """Loads a `.keras` or `.h5` file that Keras 3 wrote, and converts its model.

    Args:
        path: the file.
        verify: see `from_keras3`.

    Returns:
        A tf_keras model, not compiled.

    Raises:
        ImportError: if Keras 3 can't be imported.
        ValueError: if Keras 3 can't load the file, or it holds Python code, or its model
            has parts without a counterpart in tf_keras.
    """
    text = os.fspath(path)
    try:
        import keras as keras_3
    except ImportError as error:
        raise ImportError(
            f"{text} was written by Keras 3, which can't be imported here: pip install 'keras>=3', "
            "or save it with tf_keras."
        ) from error
    try:
        model = keras_3.models.load_model(text, compile=False)
    except Exception as error:  # Damaged files raise exceptions of many types.
        keras_files.refuse_code("path", text, keras_files.config_of(pathlib.Path(text)), error)
        fix = f"It says: {checks.in_short(error)}"
        raise checks.value_error("path", "a file that Keras 3 can load", text, fix) from error
    layers = [one for one in model.layers if isinstance(one, keras_3.layers.TextVectorization)]
    if verify is True and layers:
        verify = _texts(layers[0], model.inputs[0].shape)
    return from_keras3(model, verify=verify, custom_layers=_tokenizers(keras_3))


def _texts(layer: Any, shape: Any) -> np.ndarray:
    """Eight texts of words that a tokenizer knows, as its model takes them."""
    words = [str(word) for word in layer.get_vocabulary(include_special_tokens=False)]
    drawn = np.random.default_rng(0).choice(words, (8, 12))
    return np.array([" ".join(row) for row in drawn], object).reshape(-1, *[1] * (len(shape) - 1))


def _tokenizers(keras_3: ModuleType) -> Custom:
    """Conversion of TextVectorization with its vocabulary, for models that take texts."""

    def made(layer: Any) -> keras.layers.Layer:
        config = layer.get_config()
        names = ("name", "standardize", "split", "ngrams", "output_mode", "output_sequence_length")
        words = [str(word) for word in layer.get_vocabulary(include_special_tokens=False)]
        given = {name: config[name] for name in names}
        return keras.layers.TextVectorization(vocabulary=words, **given)

    return {keras_3.layers.TextVectorization: made}


def _convert(model: Any, module: ModuleType, custom: Custom) -> keras.Model:
    """The tf_keras model; raises an error that lists all unsupported parts."""
    converter = Converter(module, custom)
    made = converter.model(model)
    if converter.missing:
        lines = "\n".join(f"- {line}" for line in dict.fromkeys(converter.missing))
        raise ValueError(
            f"`model`: expected a Keras 3 model whose parts exist in tf_keras, received "
            f"{model.name!r} with parts that don't:\n{lines}\n"
            "Replace them, or give layers a counterpart in `custom_layers`."
        )
    converter.copy_weights()
    return made


def _in_float64(model: Any, module: ModuleType, custom: Custom) -> tuple[Any, keras.Model]:
    """A Keras 3 model and its counterpart, both rebuilt in float64.

    Raises:
        Exception: of any kind, if they can't be built.
    """
    names = {kind.__name__: kind for kind in custom}
    twin = type(model).from_config(_doubled(model.get_config()), custom_objects=names)
    twin.set_weights(model.get_weights())

    def doubling(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def make(layer: Any) -> Any:
            made = function(layer)
            return type(made).from_config(_doubled(made.get_config()))

        return make

    return twin, _convert(twin, module, {kind: doubling(f) for kind, f in custom.items()})


def _doubled(config: Any) -> Any:
    """A copy of a config with every "float32" replaced by "float64"."""
    if isinstance(config, dict):
        return {key: _doubled(value) for key, value in config.items()}
    if isinstance(config, (list, tuple)):
        return type(config)(_doubled(value) for value in config)
    return "float64" if config == "float32" else config


def _imported(model: Any) -> ModuleType:
    """The module of Keras 3, after checking that the model belongs to it."""
    if isinstance(model, keras.Model):
        raise checks.type_error(
            "model", "a Keras 3 model", model, "It is a tf_keras model already: use it as it is."
        )
    expected = "a functional or Sequential model of Keras 3"
    if not any(kind.__module__.split(".")[0] == "keras" for kind in type(model).__mro__):
        raise checks.type_error("model", expected, model)
    try:
        import keras as keras_3
    except ImportError as error:
        raise ImportError(
            "tfkd.from_keras3 needs Keras 3, which can't be imported here: "
            "pip install 'keras>=3' (Python 3.11 or later for its newest version)."
        ) from error
    if keras_3.__version__.startswith("2.") or not isinstance(model, keras_3.Model):
        raise checks.type_error("model", expected, model)
    return keras_3


def _custom(given: Any) -> Custom:
    found = checks.instance(
        "custom_layers", {} if given is None else given, Mapping, "a dict of class → function"
    )
    for kind, function in found.items():
        checks.instance("custom_layers", kind, type, "layer classes of Keras 3 as keys")
        checks.function("custom_layers", function)
    return dict(found)
