"""Copying of single layers: first from the config, then the weights once both are built."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import tf_keras as keras

from tfkd import checks
from tfkd.keras_internals import TFOpLambda
from tfkd.networks import configs, layer_state


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
    if configs.is_stored(layer):
        return configs.copied(layer, name)
    try:
        if kind is keras.layers.Lambda:
            return configs.copy_lambda(
                layer, name=name, dtype=layer.dtype, trainable=layer.trainable
            )
        if isinstance(layer, TFOpLambda):
            return kind(layer.function, name=name, dtype=layer.dtype)
        whole = configs.complete(layer.get_config(), layer, fixed=True)
        config = {**whole, **_functions(layer), "name": name, **changes}
        copy = configs.built_again(layer, config)
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
