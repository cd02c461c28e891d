"""A copy of one layer: its config first, its weights once they are there."""

from __future__ import annotations

import inspect
from typing import Any

import tf_keras as keras

from tfkd.keras_internals import SafeModeScope, TFOpLambda
from tfkd.networks import layer_state, stored_function
from tfkd.networks.layer_parts import held_objects


def copy_layer(layer: Any, name: str | None = None, **changes: Any) -> Any:
    """A layer of the same class and arguments, without weights as yet.

    Args:
        layer: of any class with a `get_config`; not changed.
        name: of the copy; None: that of `layer`.
        changes: arguments of the layer to set otherwise, as its config holds them.

    Returns:
        The new layer, not built. `copy_state` brings the weights, once it is.

    Raises:
        ValueError: if it can't be built from its config.
    """
    kind = type(layer)
    name = name or layer.name
    if stored_function.is_stored(layer):
        return stored_function.copied(layer, name)
    try:
        # A Lambda's own function: its code in a config would lose the names it uses.
        if kind is keras.layers.Lambda:
            return _copy_lambda(layer, name)
        if isinstance(layer, TFOpLambda):
            return kind(layer.function, name=name, dtype=layer.dtype)
        whole = layer_state.complete(layer.get_config(), layer, fixed=True)
        config = {**whole, **_functions(layer), "name": name, **changes}
        held = {**held_objects(layer), **stored_function.sources(layer)}
        with (
            keras.utils.custom_object_scope(held),
            SafeModeScope(safe_mode=False),
        ):
            copy = kind.from_config(config)
    except Exception as error:
        raise _not_built(layer, repr(error)) from error
    if copy.name != name:
        raise _not_built(layer, f"its copy is named {copy.name!r}")
    return copy


def _functions(layer: Any) -> dict[str, Any]:
    """The activation functions of one of Keras' own layers, which take them as they are."""
    if not type(layer).__module__.startswith("tf_keras."):
        return {}
    found = {key: getattr(layer, key, None) for key in ("activation", "recurrent_activation")}
    return {key: value for key, value in found.items() if inspect.isfunction(value)}


def _copy_lambda(layer: Any, name: str) -> Any:
    return keras.layers.Lambda(
        layer.function,
        output_shape=layer._output_shape,
        mask=layer.mask,
        arguments=layer.arguments,
        name=name,
        dtype=layer.dtype,
        trainable=layer.trainable,
    )


def _not_built(layer: Any, reason: str) -> ValueError:
    return ValueError(
        f"`model`: expected layers that can be built again from their config, received "
        f"{layer.name!r}, a {type(layer).__name__}, which can't ({reason}). Give it a get_config "
        "that holds all arguments of its constructor and adds to super().get_config(), and let "
        "the constructor pass **kwargs on."
    )


def copy_state(layer: Any, parts: list[Any]) -> None:
    """Gives built layers the weights of `layer`, in order, and its `trainable` flags.

    Raises:
        ValueError: if they have other weights.
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
