"""Copies of layers that were loaded from a SavedModel without their class.

Keras gives such a layer a class of the right name that computes by the functions in the
SavedModel, and can't build it again from its config. Where it has no weights, a copy may
call the same functions.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import tf_keras as keras

from tfkd.keras_internals import RevivedLayer
from tfkd.networks.layer_parts import flat_layers


@keras.saving.register_keras_serializable(package="tfkd")
class StoredFunction(keras.layers.Layer):
    """A copy of a layer without weights: calls the layer that it is a copy of.

    A SavedModel can hold it; a `.keras` file can't, for it holds no functions.

    Args:
        source: the layer, as Keras loaded it.
        options: of `keras.layers.Layer`.
    """

    def __init__(self, source: Any, **options: Any):
        super().__init__(**options)
        self.source = source
        self.supports_masking = source.supports_masking

    def call(self, inputs: Any, *args: Any) -> Any:
        """What the layer computes; `training` reaches it by Keras's own context."""
        return self.source(inputs, *args)

    def get_config(self) -> dict[str, Any]:
        """What a copy is found again by: its name."""
        return {"name": self.name, "trainable": self.trainable, "dtype": self.dtype}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> StoredFunction:
        """Refused: a config holds no function."""
        raise ValueError(
            f"{config['name']!r} was loaded from a SavedModel without its class, and a config or "
            ".keras file does not hold what it computes. Save the model as a SavedModel: "
            "model.save(folder)."
        )


class _Source:
    """Stands for a class in a scope of custom objects: copies the layer of a config's name."""

    def __init__(self) -> None:
        self.layers: dict[str, Any] = {}

    def from_config(self, config: dict[str, Any]) -> StoredFunction:
        """A copy of the layer that bears this name."""
        return copied(self.layers[config["name"]], config["name"])


def is_stored(layer: Any) -> bool:
    """True for a layer that was loaded without its class, and for a copy of one.

    Raises:
        ValueError: if it has weights, which no copy can have of its own.
    """
    if not isinstance(layer, (RevivedLayer, StoredFunction)):
        return False
    if layer.weights:
        kind = type(layer).__name__
        raise ValueError(
            "`model`: expected layers that can be built again from their config, received "
            f"{layer.name!r}, a {kind} with weights that was loaded from a SavedModel without its "
            "class. Load it with the class, whose get_config holds all arguments of its "
            f"constructor: keras.models.load_model(path, custom_objects={{{kind!r}: {kind}}})."
        )
    return True


def copied(layer: Any, name: str) -> StoredFunction:
    """A copy of a layer that `is_stored`."""
    source = layer.source if isinstance(layer, StoredFunction) else layer
    return StoredFunction(source, name=name, dtype=layer.dtype, trainable=layer.trainable)


def sources(layer: Any) -> dict[str, Any]:
    """For a scope of custom objects: what copies the layers in a layer or model, by class.

    Raises:
        ValueError: if one has weights, or two of one name are in different nested models.
    """
    found: dict[str, _Source] = {}
    for part in _outermost(layer):
        kind = keras.utils.get_registered_name(type(part))
        known = found.setdefault(kind, _Source()).layers
        if known.setdefault(part.name, part) is not part:
            raise ValueError(
                "`model`: expected layers of different names, received two named "
                f"{part.name!r} that were loaded from a SavedModel without their class. Build "
                "the model with other names, or load it with custom_objects."
            )
    return found


def _outermost(layer: Any) -> Iterator[Any]:
    """The layers in a layer or model that are stored, but not what they are made of."""
    for part in flat_layers(layer, include_self=False, deep=False):
        if is_stored(part):
            yield part
        else:
            yield from _outermost(part)
