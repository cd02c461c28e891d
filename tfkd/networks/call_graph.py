"""A functional model as a graph of calls, and its copy with some of the calls left out.

A layer can be called several times and a call can return several tensors, so a
tensor is named as Keras names it in a config: (layer, number of its call,
number of the output).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import tensorflow as tf
import tf_keras as keras

from tfkd.keras_internals import _should_skip_first_node
from tfkd.networks import layer_state
from tfkd.networks.accept import is_network
from tfkd.networks.layer_parts import parts

Key = tuple[str, int]
Ref = tuple[str, int, int]


class Call(NamedTuple):
    """One call of a layer: the tensors that it reads and those that it makes."""

    layer: str
    number: int
    inputs: tuple[Ref, ...]
    outputs: tuple[Ref, ...]

    @property
    def key(self) -> Key:
        return self.layer, self.number


class Spec(NamedTuple):
    """Shape and type of a tensor."""

    shape: tuple[int | None, ...]
    dtype: str


class Wiring:
    """The calls of one model; a nested model in it is a layer like any other.

    Attributes:
        model: the model.
        layers: name → layer, also those of inputs.
        calls: key → `Call`; a call stands after those that it reads from.
        specs: tensor → `Spec`.
        tensors: tensor → the tensor of Keras.
        readers: tensor → keys of the calls that read it.
        outputs: the tensors that the model returns.
    """

    def __init__(self, model: keras.Model) -> None:
        self.model = model
        # Sequential hides its InputLayer.
        layers = keras.Model.layers.fget(model)
        self.layers: dict[str, Any] = {layer.name: layer for layer in layers}
        self._numbers = self._number_calls()
        self.calls: dict[Key, Call] = {}
        self.specs: dict[Ref, Spec] = {}
        self.tensors: dict[Ref, Any] = {}
        self.readers: dict[Ref, list[Key]] = {}
        for depth in sorted(model._nodes_by_depth, reverse=True):
            for node in model._nodes_by_depth[depth]:
                self._add(node)
        self.outputs = tuple(self._ref(t) for t in _flat(model.outputs))

    def _number_calls(self) -> dict[Key, int]:
        """Number of a call on its layer → its number in the config, which skips other models'."""
        numbers = {}
        for name, layer in self.layers.items():
            number = int(_should_skip_first_node(layer))
            for index in range(len(layer._inbound_nodes)):
                if f"{name}_ib-{index}" in self.model._network_nodes:
                    numbers[name, index] = number
                    number += 1
        return numbers

    def _ref(self, tensor: Any) -> Ref:
        made = tensor._keras_history
        return made.layer.name, self._numbers[made.layer.name, made.node_index], made.tensor_index

    def _add(self, node: Any) -> None:
        tensors = _flat(node.outputs)
        outputs = tuple(self._ref(tensor) for tensor in tensors)
        inputs = tuple(self._ref(tensor) for tensor in node.keras_inputs)
        index = node.layer._inbound_nodes.index(node)
        call = Call(node.layer.name, self._numbers[node.layer.name, index], inputs, outputs)
        self.calls[call.key] = call
        for ref, tensor in zip(outputs, tensors, strict=True):
            self.specs[ref] = Spec(tuple(tensor.shape), str(tensor.dtype.name))
            self.tensors[ref] = tensor
            self.readers.setdefault(ref, [])
        for ref in dict.fromkeys(inputs):
            self.readers[ref].append(call.key)

    def calls_of(self, layer: str) -> list[Call]:
        """The calls of one layer."""
        return [call for call in self.calls.values() if call.layer == layer]

    def after(self, ref: Ref) -> set[Key]:
        """All calls that depend on a tensor."""
        found: set[Key] = set()
        for call in self.calls.values():
            if any(used == ref or used[:2] in found for used in call.inputs):
                found.add(call.key)
        return found

    def upto(self, key: Key) -> set[Key]:
        """All calls that a call depends on, and itself."""
        return self._reach([key], {})

    def is_input(self, key: Key) -> bool:
        """True if the call stands for an input of the model."""
        return isinstance(self.layers[key[0]], keras.layers.InputLayer)

    def alive(self, moved: Mapping[Ref, Ref], gone: Iterable[Key]) -> set[Key]:
        """The calls still needed when readers of `moved` tensors read others and `gone` go.

        Inputs stay, and so do calls that nothing reads (losses added to the model).
        """
        gone = set(gone)
        roots = [resolve(ref, moved)[:2] for ref in self.outputs]
        for call in self.calls.values():
            unread = not any(self.readers[ref] for ref in call.outputs)
            if (unread and call.key not in gone) or self.is_input(call.key):
                roots.append(call.key)
        return self._reach(roots, moved)

    def _reach(self, roots: Iterable[Key], moved: Mapping[Ref, Ref]) -> set[Key]:
        found: set[Key] = set()
        todo = list(roots)
        while todo:
            key = todo.pop()
            if key not in found:
                found.add(key)
                todo += [resolve(ref, moved)[:2] for ref in self.calls[key].inputs]
        return found


def wirings(model: keras.Model, prefix: str = "") -> dict[str, Wiring]:
    """The wiring of a model, under "", and of the models nested in it, under "backbone/"."""
    found = {prefix: Wiring(model)}
    for name, layer in found[prefix].layers.items():
        if is_network(layer):
            found.update(wirings(layer, f"{prefix}{name}/"))
    return found


def resolve(ref: Ref, moved: Mapping[Ref, Ref]) -> Ref:
    """The tensor read in place of `ref`; consecutive cuts lead further up."""
    while ref in moved:
        ref = moved[ref]
    return ref


def _flat(tensors: Any) -> list[Any]:
    return tf.nest.flatten(tensors)


def cut_config(
    config: dict[str, Any],
    prefix: str,
    models: Mapping[str, Wiring],
    moved: Mapping[str, Mapping[Ref, Ref]],
    gone: Mapping[str, set[Key]],
) -> dict[str, Any]:
    """Returns a model's config without the calls that are no longer needed.

    Args:
        config: what `get_config` of the model at `prefix` gave; not changed.
        prefix: path of the model with a slash, "" for the outermost.
        models: what `wirings` gave.
        moved: for each prefix, tensor → the tensor to read in its place.
        gone: for each prefix, the calls that are cut.

    Raises:
        ValueError: if the config does not list the layers.
    """
    wiring, here = models[prefix], moved.get(prefix, {})
    if "layers" not in config:
        raise ValueError(
            f"`model`: expected a model whose get_config lists its layers, received the "
            f"{type(wiring.model).__name__} {wiring.model.name!r}, which has a config of its own. "
            "Pass keras.Model(model.inputs, model.outputs), or nest that in its place."
        )
    alive = wiring.alive(here, gone.get(prefix, ()))
    # Keras counts the calls of a layer in the order of its config: close the gaps.
    numbers: dict[Key, int] = {}
    for name, layer in wiring.layers.items():
        old = sorted(number for owner, number in alive if owner == name)
        first = int(_should_skip_first_node(layer))
        numbers.update({(name, number): first + new for new, number in enumerate(old)})

    def rewire(ref: Ref) -> Ref:
        ref = resolve(ref, here)
        return ref[0], numbers[ref[:2]], ref[2]

    layers = []
    for name, child in zip(wiring.layers, config["layers"], strict=True):
        if not any(owner == name for owner, _ in alive):
            continue
        child = dict(child)
        if any(cut.startswith(f"{prefix}{name}/") for cut in moved):
            child["config"] = cut_config(child["config"], f"{prefix}{name}/", models, moved, gone)
        if "inbound_nodes" in child:
            first = int(_should_skip_first_node(wiring.layers[name]))
            nodes = enumerate(child["inbound_nodes"], start=first)
            child["inbound_nodes"] = [
                _map_refs(node, rewire) for number, node in nodes if (name, number) in alive
            ]
        layers.append(child)
    config = {**config, "layers": layers}
    if "output_layers" in config:
        config["output_layers"] = _map_refs(config["output_layers"], rewire)
    return config


def _map_refs(value: Any, rewire: Callable[[Ref], Ref]) -> Any:
    """A copy of a part of a config where each [layer, call, output, …] is rewired."""
    if isinstance(value, dict):
        return {key: _map_refs(item, rewire) for key, item in value.items()}
    if not isinstance(value, (list, tuple)):
        return value
    # Keras takes every list of 3 or 4 that begins with a string for a tensor.
    if isinstance(value, list) and len(value) in (3, 4) and isinstance(value[0], str):
        arguments = [_map_refs(item, rewire) for item in value[3:]]
        if value[0] == "_CONSTANT_VALUE":
            return [*value[:3], *arguments]
        return [*rewire((value[0], value[1], value[2])), *arguments]
    return type(value)(_map_refs(item, rewire) for item in value)


def own_objects(model: keras.Model) -> dict[str, Any]:
    """Classes and functions that the layers hold and Keras does not know, by name.

    Activations, regularizers and the like that a user wrote; in a custom object
    scope the layers can be made again without being registered.
    """
    found = {}
    for layer in parts(model):
        for value in vars(layer).values():
            item = value if inspect.isfunction(value) else type(value)
            known = getattr(item, "__module__", "").startswith(("tf_keras.", "tensorflow."))
            if not known and (inspect.isfunction(item) or hasattr(item, "get_config")):
                found[item.__name__] = item
    return found


def copy_weights(source: Any, target: Any) -> None:
    """Gives each layer of `target` the values of the layer of that name in `source`."""
    layers = {layer.name: layer for layer in source.layers}
    for layer in target.layers:
        if layer.name not in layers:
            raise ValueError(
                f"`model`: expected layers whose get_config holds their name, received a "
                f"{type(layer).__name__} whose copy is named {layer.name!r}. Let its get_config "
                "add to super().get_config(), and its constructor pass **kwargs on."
            )
        before = layers[layer.name]
        # A nested model with a config of its own is whole, but may name its layers anew.
        known = {part.name for part in getattr(before, "layers", ())}
        if is_network(layer) and known.issuperset(part.name for part in layer.layers):
            copy_weights(before, layer)
            continue
        layer_state.copy(before, layer)


def refuse_ties(model: keras.Model) -> None:
    """Raises ValueError if two models hold one layer: from its config Keras makes two."""
    places: dict[int, str] = {}
    for prefix, wiring in wirings(model).items():
        for name, layer in wiring.layers.items():
            other = places.setdefault(id(layer), prefix + name)
            if other != prefix + name and layer.weights:
                raise ValueError(
                    f"`model`: expected each layer in one model, received one whose layer "
                    f"{other!r} is also {prefix + name!r}, and a copy would have it twice. Call "
                    "it in one of the two only."
                )
