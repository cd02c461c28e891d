"""Finds layers from which Keras can't write a config, and so neither copy nor save them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import tf_keras as keras

from tfkd import checks
from tfkd.networks.layer_parts import output_form


def check(name: str, model: Any) -> None:
    """Raises ValueError for a layer whose `get_config` fails, with its name and what to add.

    Args:
        name: name of the argument, for the message.
        model: a model. Of a subclassed one, and of anything else, no layer is looked at.
    """
    fault = fault_of(name, model)
    if fault is not None:
        raise fault


def fault_of(name: str, model: Any) -> ValueError | None:
    """The error that `check` raises, or None."""
    for layer in _leaves(model):
        try:
            layer.get_config()
        except Exception as error:  # the method may be a user's
            kind = type(layer).__name__
            return ValueError(
                f"`{name}`: expected layers that can be made again from their config, received "
                f"the {kind} {layer.name!r}, which has none ({checks.in_short(error)}). Give "
                f"{kind} a get_config that adds the arguments of its constructor to "
                "super().get_config(), and let the constructor pass **kwargs on."
            )
    return None


def _leaves(model: Any) -> Iterator[keras.layers.Layer]:
    """The layers that the config of a functional or Sequential model lists, also of nested ones."""
    if isinstance(model, keras.Sequential) or output_form(model) is not None:
        for layer in model.layers:
            inner = list(_leaves(layer))
            yield from inner or [layer]
