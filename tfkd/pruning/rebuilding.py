"""Builds a model from an edited config and carries weights over by the layers' paths."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np
import tf_keras as keras

from tfkd.keras_internals import SafeModeScope
from tfkd.networks import layer_state
from tfkd.networks.accept import is_network
from tfkd.networks.paths import layers_by_path
from tfkd.pruning.graph import Graph, kept


def rebuild(model: keras.Model, graph: Graph, removed: np.ndarray) -> keras.Model:
    """Returns a new model without the removed units, with the weights that are left.

    Args:
        model: a model with the layers of `graph`; it is not changed.
        graph: of this model.
        removed: bool array (U,), True where a unit goes.

    Returns:
        A model of the same class, with the same layer names, sharing nothing.
    """
    try:
        config = layer_state.complete(strip(model.get_config()), model)
    except (NotImplementedError, ValueError, TypeError) as error:
        raise _not_built_again(model, error) from error
    if "layers" not in config:
        raise ValueError(
            f"`model`: expected a model whose get_config lists its layers, received the "
            f"{type(model).__name__} {model.name!r}, which has a config of its own. Pass "
            "keras.Model(model.inputs, model.outputs)."
        )
    _resize(config, graph, removed)
    _check_sharing(model)
    small = from_config(model, config)
    owned = graph.owners()

    def left(weight: Any) -> np.ndarray:
        return gather(weight.numpy(), owned.get(id(weight), []), removed)

    for before, after in paired(model, small):
        layer_state.copy(before, after, left)
    return small


def _check_sharing(model: keras.Model) -> None:
    """Raises if two nested models share a layer: Keras would build it twice."""
    paths = _paths(model)
    shared = [found for found in paths.values() if len(found) > 1]
    if shared:
        raise ValueError(
            "`model`: expected layers that belong to one nested model each, received the same "
            f"layer at {' and '.join(shared[0])}, which Keras can't build again as one (nor load "
            "from a file). Build the model without nesting, or call one nested model twice."
        )


def _paths(model: keras.Model) -> dict[int, list[str]]:
    """id of a layer → all its paths."""
    paths = defaultdict(list)
    for path, layer in layers_by_path(model).items():
        paths[id(layer)].append(path)
    return paths


def gather(
    value: np.ndarray, axes: list[tuple[int, np.ndarray]], removed: np.ndarray
) -> np.ndarray:
    """An array without the indices of removed units along each of `axes`."""
    for axis, units in axes:
        value = np.compress(kept(units, removed), value, axis)
    return value


def from_config(model: keras.Model, config: dict[str, Any]) -> keras.Model:
    """Builds a model of the class of `model` from a config, with its own layer classes."""
    classes = {type(layer).__name__: type(layer) for layer in _all_layers(model)}
    classes.update(keras.utils.get_custom_objects())
    try:
        # The code of a Lambda layer is already in this process.
        with SafeModeScope(safe_mode=False):
            return type(model).from_config(config, custom_objects=classes)
    except Exception as error:
        raise _not_built_again(model, error) from error


def _not_built_again(model: keras.Model, error: Exception) -> ValueError:
    return ValueError(
        f"`model`: expected a model that can be built again from its config, received "
        f"{model.name!r}, which can't ({error!r}). Give its custom layers get_config, and use "
        "keras.utils.custom_object_scope for custom functions."
    )


def _all_layers(model: keras.Model) -> Iterator[Any]:
    return model._flatten_layers(include_self=False)


def strip(config: Any) -> Any:
    """A copy of a config without the shapes that layers were built for."""
    if isinstance(config, dict):
        drop = ("build_config", "build_input_shape")
        return {key: strip(value) for key, value in config.items() if key not in drop}
    # Keras wraps the lists and tuples that a layer keeps: plain ones are built from here.
    if isinstance(config, tuple):
        return tuple(strip(value) for value in config)
    if isinstance(config, list):
        return [strip(value) for value in config]
    return config if callable(config) else copy.copy(config)


def named(config: dict[str, Any], kind: str) -> str:
    """The name in a layer's config.

    Raises:
        ValueError: if there is none.
    """
    if "name" not in config:
        raise ValueError(
            f"`model`: expected layers whose get_config holds their name, received a {kind} whose "
            "config has none. Let its get_config add to super().get_config(), and its constructor "
            "pass **kwargs on."
        )
    return config["name"]


def children(config: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Path and config of every layer of a model's config, nested models entered."""
    for item in config["layers"]:
        path = prefix + named(item["config"], item["class_name"])
        yield path, item["config"]
        if isinstance(item["config"].get("layers"), list):
            yield from children(item["config"], f"{path}/")


def _resize(config: dict[str, Any], graph: Graph, removed: np.ndarray) -> None:
    """Sets the counts of channels in the layers' configs."""
    configs = dict(children(config))
    for path in {axis.layer for axis in graph.axes if not kept(axis.units, removed).all()}:
        _forget_tables(configs[path])
    for item in graph.resizes:
        count = int(kept(item.units, removed).sum())
        inner = configs[item.layer]
        *outer, key = item.key.split(".")
        for name in outer:
            inner = inner[name]
        if item.index is None:
            inner[key] = count
        else:
            sizes = list(inner[key])
            sizes[item.index] = count
            inner[key] = type(inner[key])(sizes)


def _forget_tables(config: dict[str, Any]) -> None:
    """Replaces initializers that are arrays of the old size: the weights are set anyway."""
    for key, value in config.items():
        constant = isinstance(value, dict) and value.get("class_name") == "Constant"
        if constant and not isinstance(value["config"].get("value"), (int, float)):
            config[key] = keras.initializers.serialize(keras.initializers.Zeros())


def paired(first: keras.Model, second: keras.Model) -> Iterator[tuple[Any, Any]]:
    """Layers of two models by name; functional models inside are left to their layers."""
    others = {layer.name: layer for layer in second.layers}
    for layer in first.layers:
        if is_network(layer):
            yield from paired(layer, others[layer.name])
        else:
            yield layer, others[layer.name]
