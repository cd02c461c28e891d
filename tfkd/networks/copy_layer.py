"""Copying of single layers: first from the config, then the weights once both are built."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import tf_keras as keras

from tfkd import checks
from tfkd.keras_internals import SafeModeScope, TFOpLambda
from tfkd.networks import layer_state, stored_function
from tfkd.networks.layer_parts import flat_layers, held_objects

# Arguments that a Lambda has in common with other layers.
_OF_LAYER = ("name", "trainable", "dtype", "batch_input_shape")


def copy_layer(
    layer: keras.layers.Layer, name: str | None = None, **changes: Any
) -> keras.layers.Layer:
    """Makes an unbuilt layer of the same class with the same arguments.

    Args:
        layer: a layer of any class with a `get_config`; it is not changed.
        name: name of the copy; None: that of `layer`.
        **changes: constructor arguments to change, in the form in which a config holds them.

    Returns:
        The new layer. Once it is built, `copy_state` copies the weights.

    Raises:
        ValueError: if the layer can't be built from its config.

    Example:
        >>> dense = copy_layer(keras.layers.Dense(3, name="logits"), use_bias=False)
        >>> dense.units, dense.use_bias, dense.name
        (3, False, 'logits')
    """
    kind = type(layer)
    name = name or layer.name
    if stored_function.is_stored(layer):
        return stored_function.copied(layer, name)
    try:
        if kind is keras.layers.Lambda:
            return _copy_lambda(layer, name=name, dtype=layer.dtype, trainable=layer.trainable)
        if isinstance(layer, TFOpLambda):
            return kind(layer.function, name=name, dtype=layer.dtype)
        whole = layer_state.complete(layer.get_config(), layer, fixed=True)
        config = {**whole, **_functions(layer), "name": name, **changes}
        inner = lambdas(layer)
        held = {**held_objects(layer), **stored_function.sources(layer), **inner}
        with keras.utils.custom_object_scope(held), SafeModeScope(safe_mode=False):
            copy = kind.from_config(with_lambdas_in_scope(config) if inner else config)
    except Exception as error:
        raise _not_built(layer, checks.in_short(error)) from error
    if copy.name != name:
        raise _not_built(layer, f"its copy is named {copy.name!r}")
    return copy


def _functions(layer: Any) -> dict[str, Any]:
    """The activation functions of one of Keras's own layers, whose constructors accept them."""
    if not type(layer).__module__.startswith("tf_keras."):
        return {}
    found = {key: getattr(layer, key, None) for key in ("activation", "recurrent_activation")}
    return {key: value for key, value in found.items() if inspect.isfunction(value)}


class _Lambdas:
    """Stands for `Lambda` in a scope of custom objects: copies the layer of a config's name."""

    def __init__(self, layers: list[Any]):
        self.layers = layers

    def from_config(self, config: dict[str, Any]) -> Any:
        """A copy of the layer that bears this name; from its code if several do."""
        named = [layer for layer in self.layers if layer.name == config["name"]]
        if len(named) != 1:
            return keras.layers.Lambda.from_config(config)
        return _copy_lambda(*named, **{key: config[key] for key in _OF_LAYER if key in config})


def lambdas(layer: keras.layers.Layer) -> dict[str, Any]:
    """For a scope of custom objects: what copies the Lambda layers in a layer or model."""
    found = [part for part in flat_layers(layer) if type(part) is keras.layers.Lambda]
    return {"Lambda": _Lambdas(found)} if found else {}


def with_lambdas_in_scope(config: Any) -> Any:
    """A config for which Keras looks for `Lambda` in the scope, where `lambdas` may be."""
    if isinstance(config, dict):
        made = {key: with_lambdas_in_scope(item) for key, item in config.items()}
        return {**made, "registered_name": "Lambda"} if made.get("class_name") == "Lambda" else made
    if type(config) in (list, tuple):
        return type(config)(map(with_lambdas_in_scope, config))
    return config


def _copy_lambda(layer: Any, **options: Any) -> Any:
    """A Lambda with the same function object: serialized code loses what it refers to."""
    same = {key: getattr(layer, key) for key in ("mask", "arguments")}
    return keras.layers.Lambda(layer.function, layer._output_shape, **same, **options)


def _not_built(layer: Any, reason: str) -> ValueError:
    return ValueError(
        f"`model`: expected layers that can be built again from their config, received "
        f"{layer.name!r}, a {type(layer).__name__}, which can't ({reason}). Give it a get_config "
        "that holds all arguments of its constructor and adds to super().get_config(), and let "
        "the constructor pass **kwargs on."
    )


def copy_state(layer: keras.layers.Layer, parts: Sequence[keras.layers.Layer]) -> None:
    """Copies the weights and `trainable` flags of `layer` into the layers that replace it.

    Args:
        layer: the original.
        parts: built layers that together hold the same weights, in the same order.

    Raises:
        ValueError: if the number or the shapes of the weights differ.
    """
    if len(parts) == 1:
        layer_state.copy(layer, parts[0], fixed=True)
    else:
        _copy_weights(layer, [weight for part in parts for weight in part.weights])
    for part in parts:
        part.trainable = layer.trainable
    olds, news = list(layer._flatten_layers()), list(parts[0]._flatten_layers())
    if len(parts) == 1 and len(olds) == len(news):
        for old, new in zip(olds, news, strict=True):
            new.trainable = old.trainable


def _copy_weights(layer: Any, weights: list[Any]) -> None:
    shapes = [tuple(weight.shape) for weight in layer.weights]
    received = [tuple(weight.shape) for weight in weights]
    if shapes != received:
        raise _not_built(layer, f"weights of shapes {received} instead of {shapes}")
    for old, new in zip(layer.weights, weights, strict=True):
        new.assign(old)
