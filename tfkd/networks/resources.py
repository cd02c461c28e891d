"""Texts, lookup tables and random generators in a model: the layers and objects that hold them."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
import tf_keras as keras

from tfkd.networks import layer_state


def words(model: keras.Model) -> list[str]:
    """The words in the tables of a model, in alphabetical order."""
    found: set[str] = set()
    for layer in layer_state.tables(model):
        if hasattr(layer, "get_vocabulary"):
            keys: Any = layer.get_vocabulary(include_special_tokens=False)
        else:
            values = vars(layer).values()
            held = [value for value in values if isinstance(value, layer_state.TABLES)]
            keys = [key for table in held for key in table.export()[0].numpy().tolist()]
        texts = (key.decode(errors="replace") if isinstance(key, bytes) else key for key in keys)
        found.update(str(text) for text in texts if isinstance(text, str))
    return sorted(found)


def text_layers(model: keras.Model) -> list[keras.layers.Layer]:
    """The layers of a model that turn texts into numbers or numbers into texts.

    They are found by the tensors of their calls, so those inside subclassed models, whose
    calls Keras does not record, are not among them.
    """
    return [
        part
        for part in model._flatten_layers()
        if not isinstance(part, keras.Model) and any(map(_turns_texts, part._inbound_nodes))
    ]


def _turns_texts(node: Any) -> bool:
    ends = [tf.nest.flatten(tensors) for tensors in (node.input_tensors, node.output_tensors)]
    # The first argument of an operation may be plain text, such as the equation of an einsum.
    reads, writes = (any(getattr(one, "dtype", None) == tf.string for one in end) for end in ends)
    return not node.is_input and reads != writes


def tracked(model: keras.Model) -> list[Any]:
    """What a SavedModel must hold beside the weights: lookup tables and random generators."""
    kinds = (tf.saved_model.experimental.TrackableResource, tf.random.Generator)
    found = [one for one in tf.train.TrackableView(model).descendants() if isinstance(one, kinds)]
    # Keras shows the generators of its random layers only while it saves a model itself.
    random = [getattr(part, "_random_generator", None) for part in model._flatten_layers()]
    made = [getattr(one, "_generator", None) for one in random]
    return [*found, *(one for one in made if one is not None)]
