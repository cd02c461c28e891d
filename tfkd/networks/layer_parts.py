"""The parts of a layer or model: layers, cells and whatever else it is made of."""

from __future__ import annotations

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
