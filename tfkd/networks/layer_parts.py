"""Introspection of Keras layers: sublayers, weights, nodes, call arguments."""

from __future__ import annotations

import itertools
from collections.abc import Container, Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import tensorflow as tf
    import tf_keras as keras

    from tfkd.types import Structure


def parts(layer: keras.layers.Layer) -> tuple[Any, ...]:
    """`layer.submodules`, also for layers on which that property fails.

    TensorFlow traverses every attribute of a module, and fails on the dropout masks that
    a recurrent layer with `recurrent_dropout` caches once it was called in two graphs.
    Keras's own list of submodules leaves those out.

    Args:
        layer: a `tf_keras` layer or model.

    Example:
        >>> import tf_keras as keras
        >>> [part.name for part in parts(keras.layers.RNN(keras.layers.GRUCell(2, name="cell")))]
        ['cell']
    """
    try:
        return tuple(layer.submodules)
    except ValueError:
        return tuple(layer._flatten_modules(include_self=False))


def free_name(name: str, taken: Container[str]) -> str:
    """`name` if it is not taken, else the first of name_1, name_2, … that is not."""
    names = itertools.chain([name], (f"{name}_{number}" for number in itertools.count(1)))
    return next(one for one in names if one not in taken)


def keras_layers(names: str) -> tuple[Any, ...]:
    """Classes of tf_keras.layers, from their names with spaces between them."""
    import tf_keras as keras

    return tuple(getattr(keras.layers, name) for name in names.split())


def flat_layers(layer: object, include_self: bool = True, deep: bool = True) -> list[Any]:
    """A layer or model and all layers in it; an empty list for anything else.

    Args:
        layer: a layer or model of Keras 2 or 3.
        include_self: whether `layer` itself is listed.
        deep: whether layers inside of layers are listed, to any depth.
    """
    flatten = getattr(layer, "_flatten_layers", None)
    return list(flatten(include_self=include_self, recursive=deep)) if flatten else []


def arrays(layer: keras.layers.Layer) -> list[tf.Variable]:
    """The weights of a layer or model without lookup tables, which Keras lists among them.

    Example:
        >>> import tf_keras as keras
        >>> words = keras.layers.StringLookup()
        >>> words.adapt(["a", "b"])
        >>> len(words.weights), arrays(words)
        (1, [])
    """
    return [weight for weight in layer.weights if hasattr(weight, "shape")]


def count(weights: Iterable[tf.Variable]) -> int:
    """Number of parameters in `weights`; one of unknown shape counts as 0, as in Keras."""
    from tfkd.keras_internals import count_params

    return count_params(list(weights))


def unfuse(layer: keras.layers.Layer) -> None:
    """Makes every LSTM in a layer compute in a loop of single operations.

    By default Keras marks an LSTM for fusion. TFLite's converter then tries to quantize the
    fused operation by the ranges around it, and fails for those inside that nobody measured,
    or gives them wrong scales.
    """
    import tf_keras as keras

    for part in (layer, *parts(layer)):
        if isinstance(part, keras.layers.LSTM):
            part._could_use_gpu_kernel = False


def calls_anywhere(layer: keras.layers.Layer) -> list[Any]:
    """The nodes of all calls of a layer of Keras 2 or 3, in any model."""
    return layer._inbound_nodes


def inputs_in_order(model: keras.Model, inputs: Structure) -> list[Any]:
    """The arguments of a functional model's call, flattened in the order of `model.inputs`."""
    return model._flatten_to_reference_inputs(inputs)


def input_form(model: keras.Model) -> Structure | None:
    """The nested structure of a functional model's input tensors; None for other models."""
    return getattr(model, "_nested_inputs", None)


def output_form(model: keras.Model) -> Structure | None:
    """The nested structure of a functional model's output tensors; None for other models."""
    return getattr(model, "_nested_outputs", None)


def takes_mask(layer: keras.layers.Layer) -> bool:
    """True if a layer's `call` has the argument `mask`."""
    return layer._call_spec.expects_mask_arg


def passed(
    layer: keras.layers.Layer, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """The value of the argument `name` in a call of a layer; None if it is not passed."""
    spec = layer._call_spec
    if not spec.arg_was_passed(name, args, kwargs, inputs_in_args=True):
        return None
    return spec.get_arg_value(name, args, kwargs, inputs_in_args=True)


def with_training(
    layer: keras.layers.Layer, training: bool | None, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a call with `training` set, if the layer accepts it and it is missing."""
    spec = layer._call_spec
    if not spec.expects_training_arg or passed(layer, "training", args, kwargs) is not None:
        return args, kwargs
    return spec.set_arg_value("training", training, args, kwargs, inputs_in_args=True)
