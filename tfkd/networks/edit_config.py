"""Model surgery on configs: rebuild a model with calls removed or sizes changed, copy weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import tf_keras as keras

from tfkd.networks import layer_state
from tfkd.networks.call_graph import CallGraph, Key, Ref, first_number, resolve
from tfkd.networks.configs import Config, check_lists_layers, complete_config, from_config


def rebuild(
    graph: CallGraph, edit: Callable[[Config], Config], change: Callable[[Any], Any] | None = None
) -> keras.Model:
    """Rebuilds a model from its edited config.

    Args:
        graph: graph of the model, which is not changed.
        edit: maps the complete config of the model to that of the new one.
        change: maps a weight of the model to the value that its copy gets; None: the same.

    Returns:
        A model of the same class with the same layer names that shares no layer with it.

    Raises:
        ValueError: if a layer belongs to two models, or the model can't be built from a config.
    """
    refuse_ties(graph)
    config = complete_config(graph.model)
    made = from_config(graph.model, edit(config))
    for before, after in pairs(graph.model, made, graph.nested):
        layer_state.copy(before, after, change)
    layer_state.copy_declaration(graph.model, made)
    return made


def refuse_ties(graph: CallGraph) -> None:
    """Raises ValueError if two models share a layer: from the config Keras would make two."""
    places: dict[int, str] = {}
    for prefix, level in graph.levels().items():
        for name, layer in level.layers.items():
            other = places.setdefault(id(layer), prefix + name)
            if other != prefix + name and layer.weights:
                raise ValueError(
                    "`model`: expected layers that belong to one nested model each, received the "
                    f"same layer at {other} and {prefix + name}, which Keras can't build again as "
                    "one (nor load from a file). Build the model without nesting, or call one "
                    "nested model twice."
                )


def layer_configs(config: Config, prefix: str = "") -> Iterator[tuple[str, Config]]:
    """Path and config of every layer in a model's config, including those of nested models.

    Raises:
        ValueError: if the config of a layer lacks its name.
    """
    for item in config["layers"]:
        if "name" not in item["config"]:
            raise _unnamed(item["class_name"], "config has none")
        path = prefix + item["config"]["name"]
        yield path, item["config"]
        if isinstance(item["config"].get("layers"), list):
            yield from layer_configs(item["config"], f"{path}/")


def _unnamed(kind: str, matter: str) -> ValueError:
    return ValueError(
        f"`model`: expected layers whose get_config holds their name, received a {kind} whose "
        f"{matter}. Let its get_config add to super().get_config(), and its constructor pass "
        "**kwargs on."
    )


def without_calls(
    config: Config,
    graph: CallGraph,
    moved: Mapping[str, Mapping[Ref, Ref]],
    gone: Mapping[str, set[Key]],
    prefix: str = "",
) -> Config:
    """Returns a model's config without the calls that are no longer needed.

    Args:
        config: config of the model at `prefix`; not changed.
        graph: graph of the same model.
        moved: for each prefix, tensor → the tensor that is read in its place.
        gone: for each prefix, the keys of the removed calls.
        prefix: path of the model with a trailing slash; "" for the outermost model.
    """
    config, here = check_lists_layers(config, graph.model), moved.get(prefix, {})
    alive = graph.alive(here, gone.get(prefix, ()))
    # Call indices in a config are consecutive, so the remaining calls are renumbered.
    numbers: dict[Key, int] = {}
    for name, layer in graph.layers.items():
        old = sorted(number for owner, number in alive if owner == name)
        numbers.update({(name, number): new for new, number in enumerate(old, first_number(layer))})

    def rewire(ref: Ref) -> Ref:
        ref = resolve(ref, here)
        return ref[0], numbers[ref[:2]], ref[2]

    layers = []
    for name, child in zip(graph.layers, config["layers"], strict=True):
        if not any(owner == name for owner, _ in alive):
            continue
        child = dict(child)
        inside = f"{prefix}{name}/"
        if any(cut.startswith(inside) for cut in moved):
            child["config"] = without_calls(
                child["config"], graph.nested[name], moved, gone, inside
            )
        if "inbound_nodes" in child:
            nodes = enumerate(child["inbound_nodes"], first_number(graph.layers[name]))
            child["inbound_nodes"] = [
                _map_refs(node, rewire) for number, node in nodes if (name, number) in alive
            ]
        layers.append(child)
    config = {**config, "layers": layers}
    if "output_layers" in config:
        config["output_layers"] = _map_refs(config["output_layers"], rewire)
    return config


def _map_refs(value: Any, rewire: Callable[[Ref], Ref]) -> Any:
    """Copies a part of a config and rewires each tensor reference [layer, call, output, …]."""
    if isinstance(value, dict):
        return {key: _map_refs(item, rewire) for key, item in value.items()}
    if not isinstance(value, (list, tuple)):
        return value
    # Keras reads every list of length 3 or 4 that begins with a string as a tensor reference.
    if isinstance(value, list) and len(value) in (3, 4) and isinstance(value[0], str):
        arguments = [_map_refs(item, rewire) for item in value[3:]]
        if value[0] == "_CONSTANT_VALUE":
            return [*value[:3], *arguments]
        return [*rewire((value[0], value[1], value[2])), *arguments]
    return type(value)(_map_refs(item, rewire) for item in value)


def pairs(
    source: keras.Model, target: keras.Model, nested: Mapping[str, CallGraph]
) -> Iterator[tuple[keras.layers.Layer, keras.layers.Layer]]:
    """Pairs the layers of two models by name; models inside are entered.

    Args:
        source: a model.
        target: the model that was built from its config.
        nested: graph of each model in `source` that is to be entered, by its name.

    Yields:
        (layer of `source`, layer of `target`) for each layer of `target`.

    Raises:
        ValueError: if a layer of `target` has a name that `source` lacks.
    """
    layers = {layer.name: layer for layer in source.layers}
    for layer in target.layers:
        if layer.name not in layers:
            raise _unnamed(type(layer).__name__, f"copy is named {layer.name!r}")
        inner = nested.get(layer.name)
        # A nested model that builds its layers itself may name them anew; it is one pair then.
        if inner and all(part.name in inner.layers for part in layer.layers):
            yield from pairs(inner.model, layer, inner.nested)
        else:
            yield layers[layer.name], layer
