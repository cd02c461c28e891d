"""What layers and models are made of: their parts, layers and calls, as Keras keeps them."""

from __future__ import annotations

import inspect
from typing import Any


def parts(layer: Any) -> tuple[Any, ...]:
    """Returns what `layer.submodules` does, for layers too on which that fails.

    TensorFlow looks through everything that a module holds, and can't look through what
    a recurrent layer with `recurrent_dropout` remembers once it was called in two graphs.
    Keras's own list of parts leaves such things out.

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


def flat_layers(layer: Any, include_self: bool = True, deep: bool = True) -> list[Any]:
    """A layer or model and all layers in it, to any depth; of anything else nothing.

    Args:
        layer: of Keras 2 or 3.
        include_self: False: without `layer` itself.
        deep: False: only the layers right inside of it.
    """
    flatten = getattr(layer, "_flatten_layers", None)
    return list(flatten(include_self=include_self, recursive=deep)) if flatten else []


def calls_anywhere(layer: Any) -> list[Any]:
    """All calls of a layer of Keras 2 or 3 as nodes, in whatever model."""
    return layer._inbound_nodes


def inputs_in_order(model: Any, inputs: Any) -> list[Any]:
    """What a functional model is called with, in the order of `model.inputs`."""
    return model._flatten_to_reference_inputs(inputs)


def input_form(model: Any) -> Any:
    """The tensors that a functional model takes, in their structure; None of another model."""
    return getattr(model, "_nested_inputs", None)


def output_form(model: Any) -> Any:
    """The tensors that a functional model returns, in their structure; None of another model."""
    return getattr(model, "_nested_outputs", None)


def takes_mask(layer: Any) -> bool:
    """True if a layer's `call` has the argument `mask`."""
    return layer._call_spec.expects_mask_arg


def passed(layer: Any, name: str, args: Any, kwargs: Any) -> Any:
    """What a call of a layer passes as its argument `name`; None if nothing."""
    spec = layer._call_spec
    if not spec.arg_was_passed(name, args, kwargs, inputs_in_args=True):
        return None
    return spec.get_arg_value(name, args, kwargs, inputs_in_args=True)


def with_training(layer: Any, training: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """The arguments of a call with `training` set, if the layer takes it and none is passed."""
    spec = layer._call_spec
    if not spec.expects_training_arg or passed(layer, "training", args, kwargs) is not None:
        return args, kwargs
    return spec.set_arg_value("training", training, args, kwargs, inputs_in_args=True)


def held_objects(layer: Any) -> dict[str, Any]:
    """Classes and functions that a layer or model holds and Keras does not know, by name.

    Activations, regularizers, layers and the like that a user wrote; in a custom object
    scope the layer can be made again without their being registered.
    """
    found = {}
    for part in (*parts(layer), layer):
        for value in (*vars(part).values(), part):
            item = value if inspect.isfunction(value) else type(value)
            known = getattr(item, "__module__", "").startswith(("tf_keras.", "tensorflow."))
            if not known and (inspect.isfunction(item) or hasattr(item, "get_config")):
                found[item.__name__] = item
    return found
