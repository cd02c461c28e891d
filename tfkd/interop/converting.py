"""`from_keras3`: a Keras 3 model as a tf_keras model that computes the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import tf_keras as keras

from tfkd import checks, example_inputs
from tfkd.interop.comparing import compare
from tfkd.interop.walking import Converter

Custom = dict[type, Callable[[Any], Any]]


def from_keras3(
    model: Any,
    *,
    verify: Any = True,
    tolerance: float | None = None,
    custom_layers: Mapping[type, Callable[[Any], keras.layers.Layer]] | None = None,
) -> keras.Model:
    """Converts a Keras 3 model to tf_keras, the Keras that tfkd works with.

    Layers, nested models and operations (`x + y`, `keras.ops.mean(x)`) keep their
    names, weights their values and order, shared layers stay shared. Both models
    then run on the same random inputs, and must agree. Rounding is no disagreement:
    tf_keras normalizes batches in one fused step, Keras 3 in several, and networks
    with many layers enlarge the last bit. So where the outputs differ by more than
    `tolerance`, they are compared again with the steps of Keras 3, and, if that does not
    settle it, with both models built in float64 (this takes time, and four times
    the memory). Nothing is taken over from `compile`: compile the new model
    yourself. The given model is not changed.

    Args:
        model: a functional or Sequential Keras 3 model, built; any backend.
        verify: True: compare the two models on random inputs; False: don't compare; or
            examples as the model takes them, in any form of `tfkd.example_inputs`:
            compare on these.
        tolerance: the largest difference of an output, as a part of its range, that
            may remain without rounding. None: 1e-5, or 1e-2 where the model
            computes in float16 or bfloat16. 0: none at all.
        custom_layers: your own Keras 3 layers: class → function that takes such a
            layer and returns a tf_keras layer. Its weights are copied in order, by
            shape. Also replaces layers of Keras itself.

    Returns:
        A `tf_keras` model: Sequential if the given one is, else functional.

    Raises:
        TypeError: if `model` is not a Keras 3 model, or a tf_keras model already.
        ImportError: if Keras 3 can't be imported.
        ValueError: if parts of the model have no counterpart; all of them are
            listed. Or if the two models compute different things: the difference is
            given as it is, and in float64.

    Example:
        >>> import keras
        >>> import tfkd
        >>> x = keras.Input((8,), name="x")
        >>> y = keras.ops.relu(keras.layers.Dense(4, name="hidden")(x)) + 1.0
        >>> model = tfkd.from_keras3(keras.Model(x, y))
        >>> model.get_layer("hidden").kernel.shape.as_list()
        [8, 4]
    """
    keras_3 = _keras_3(model)
    custom = _custom(custom_layers)
    if tolerance is not None:
        checks.non_negative("tolerance", tolerance)
    made = _convert(model, keras_3, custom)
    verify = example_inputs.to_verify(verify, example_inputs.inputs_of(made), strict=False)
    if verify is not False:
        batch = None if verify is True else example_inputs.packed(made, verify)
        compare(model, made, batch, tolerance, lambda: _in_float64(model, keras_3, custom))
    return made


def _convert(model: Any, keras_3: ModuleType, custom: Custom) -> keras.Model:
    """The tf_keras model, or an error with everything that is missing."""
    converter = Converter(keras_3, custom)
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


def _in_float64(model: Any, keras_3: ModuleType, custom: Custom) -> tuple[Any, keras.Model]:
    """A Keras 3 model and its counterpart, both built again in float64.

    Raises:
        Exception: of any kind, if they can't be.
    """
    names = {kind.__name__: kind for kind in custom}
    twin = type(model).from_config(_doubled(model.get_config()), custom_objects=names)
    twin.set_weights(model.get_weights())

    def doubling(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def make(layer: Any) -> Any:
            made = function(layer)
            return type(made).from_config(_doubled(made.get_config()))

        return make

    return twin, _convert(twin, keras_3, {kind: doubling(f) for kind, f in custom.items()})


def _doubled(config: Any) -> Any:
    """A config with float64 wherever it says float32."""
    if isinstance(config, dict):
        return {key: _doubled(value) for key, value in config.items()}
    if isinstance(config, (list, tuple)):
        return type(config)(_doubled(value) for value in config)
    return "float64" if config == "float32" else config


def _keras_3(model: Any) -> ModuleType:
    """Keras 3, if the model is one of its."""
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
