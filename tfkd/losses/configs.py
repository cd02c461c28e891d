"""The arguments of losses as JSON: numbers, schedules, Keras losses and objects, nested or not."""

from __future__ import annotations

from typing import Any

import tf_keras as keras

from tfkd import checks, schedules


def serialize(name: str, value: Any) -> Any:
    """Turns the value of argument `name` into JSON.

    Raises:
        ValueError: for a lambda, which can't be saved.
    """
    # A serialized instance is a dict too, so nested values are marked by a key.
    if isinstance(value, dict):
        return {"nested": {key: serialize(name, item) for key, item in value.items()}}
    if isinstance(value, (list, tuple)):
        return {"nested": [serialize(name, item) for item in value]}
    if checks.is_number(value) or isinstance(value, schedules.Schedule):
        return schedules.serialize(value)
    if value is None or isinstance(value, (str, bool)):
        return value
    known = getattr(value, "__name__", None)
    if known == "<lambda>":
        fix = "Define a function, with @keras.saving.register_keras_serializable()."
        raise checks.value_error(name, "something that can be saved", value, fix)
    if known is not None and getattr(keras.losses, known, None) is value:
        return known
    return keras.saving.serialize_keras_object(value)


def deserialize(config: Any) -> Any:
    """Restores what `serialize` returned."""
    if not isinstance(config, dict):
        return config
    if set(config) == {"nested"}:
        nested = config["nested"]
        if isinstance(nested, dict):
            return {key: deserialize(item) for key, item in nested.items()}
        return [deserialize(item) for item in nested]
    if set(config) == {"class_name", "config"}:
        return schedules.deserialize(config)
    return keras.saving.deserialize_keras_object(config)


def fresh(value: Any) -> Any:
    """Replaces the losses and metrics in a nested structure by new objects."""
    if isinstance(value, (keras.metrics.Metric, keras.losses.Loss)):
        return type(value).from_config(value.get_config())
    if isinstance(value, dict):
        return {key: fresh(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [fresh(item) for item in value]
    return value
