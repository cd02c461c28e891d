"""A model of nested models and composite layers as one flat functional model.

Quantization decides about single layers and the tensors between them. So
nested models are entered, layers that do several things are taken apart, and
what writes out a hard swish becomes one layer; the function stays the same.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import tensorflow as tf
import tf_keras as keras

from tfkd.keras_internals import TFOpLambda
from tfkd.networks import layer_weights
from tfkd.networks.accept import check_model, is_network, quantized
from tfkd.networks.call_graph import Call, CallGraph
from tfkd.networks.layer_parts import flat_layers, inputs_in_order, with_training
from tfkd.networks.rebuild import Rebuilder
from tfkd.quantization.fixed_fake_quant import FixedQuantize
from tfkd.quantization.flattening.decompose import Splitter
from tfkd.quantization.flattening.hard_swish import fuse_hard
from tfkd.quantization.wrappers import QuantizedLayer, QuantizedTensor

HALF = ("float16", "bfloat16")
_QUANTIZED = (FixedQuantize, QuantizedLayer, QuantizedTensor)


@dataclass(frozen=True)
class Flat:
    """A flat model and where its layers come from.

    Attributes:
        graph: of a functional model without models in it, on layers of its own.
        origins: name of a layer of `model` → path of the user's layer that it stands
            for, "backbone/conv1" for one in a nested model; InputLayers included.
    """

    graph: CallGraph
    origins: dict[str, str]

    @property
    def model(self) -> keras.Model:
        """The flat model."""
        return self.graph.model


def flatten(model: keras.Model) -> Flat:
    """Returns a flat model that computes the same, on new layers.

    Nested models are entered, to any depth. `SeparableConv2D` becomes a
    `DepthwiseConv2D` ("<name>_depthwise") and a 1×1 `Conv2D` of its name; an activation
    inside a convolution or dense layer that is not linear, ReLU or ReLU6 becomes an
    `Activation` behind it ("<name>_swish"); x·relu6(x + 3)/6 written with several layers
    becomes one `HardSwish`, relu6(x + 3)/6 one `HardSigmoid`. The x + s·y in one layer of
    Inception-ResNet becomes a `Rescaling` ("<name>_scaled") and an `Add` of its name.
    `MultiHeadAttention` becomes `Dense` layers ("<name>_query", "<name>_key",
    "<name>_value"), a `HeadAttention` ("<name>_heads") and a `Dense` of its name. All other
    layers are copied: names, weights, regularizers and `trainable` flags stay, shared
    layers stay shared. A layer of a nested model whose name is taken is called
    "<model>_<name>".

    Args:
        model: a built functional or Sequential `tf_keras` model in float32; not changed.

    Returns:
        A `Flat`: its model has the inputs and outputs of `model`, in the same structure.
        Outputs are equal up to float rounding, and nothing is shared with `model`.

    Raises:
        TypeError: if `model` is not a `tf_keras` model.
        ValueError: if it is not built, subclassed, quantized already or of mixed
            precision, or if a layer can't be built again from its config.

    Example:
        >>> backbone = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.SeparableConv2D(
        ...     4, 3, activation="swish", name="conv")], name="backbone")
        >>> x = keras.Input((8, 8, 3), name="image")
        >>> flat = flatten(keras.Model(x, keras.layers.Flatten(name="flat")(backbone(x))))
        >>> [layer.name for layer in flat.model.layers]
        ['image', 'conv_depthwise', 'conv', 'conv_swish', 'flat']
        >>> flat.origins["conv_swish"]
        'backbone/conv'
    """
    check_model("model", model)
    layer_weights.check_float32("model", model, "Fake quantization")
    graph = CallGraph(model)
    found = _find_layers(graph, not model.trainable)
    _check_layers(found)
    flattener = _Flattener(found)
    flat = flattener.build(graph)
    origins = {call.name: call.name for call in graph.calls.values() if call.is_input}
    origins.update(flattener.origins())
    flat, origins = fuse_hard(CallGraph(flat), origins)
    # Losses added to the model are layers of it too, and stand for none of the user's.
    return Flat(flat, {name: origins[name] for name in flat.layers if name in origins})


class _Place(NamedTuple):
    """A layer and where it stands; `frozen`: a model around it is not trainable."""

    layer: Any
    path: str
    outer: str
    frozen: bool


def _find_layers(graph: CallGraph, frozen: bool) -> dict[int, _Place]:
    """All layers and nested models by id; those further out come first."""
    found: dict[int, _Place] = {}
    todo = [(graph, "", "", frozen)]
    while todo:
        graph, prefix, outer, frozen = todo.pop(0)
        for name, layer in graph.layers.items():
            place = _Place(layer, prefix + name, outer, frozen)
            known = found.get(id(layer), place)
            # One that two models share trains if either lets it.
            found[id(layer)] = known._replace(frozen=frozen and known.frozen)
            if name in graph.nested:
                frozen_in = frozen or not layer.trainable
                todo.append((graph.nested[name], f"{prefix}{name}/", name, frozen_in))
    return found


def _check_layers(found: dict[int, _Place]) -> None:
    """Raises for layers that are quantized, pruned or of half precision."""
    for layer, path, _, _ in found.values():
        module = type(layer).__module__
        if module.startswith("tensorflow_model_optimization.") and ".sparsity." in module:
            raise ValueError(
                f"`model`: expected plain layers, received {path!r}, wrapped for pruning. Call "
                "tfmot.sparsity.keras.strip_pruning(model) first."
            )
        inside = [layer] if is_network(layer) else flat_layers(layer)
        if any(
            type(part).__module__.startswith("tensorflow_model_optimization.")
            or isinstance(part, _QUANTIZED)
            for part in inside
        ):
            raise quantized("model", path)
        for part in inside:
            if part.compute_dtype in HALF:
                raise ValueError(
                    f"`model`: expected layers in float32, received {path!r} in "
                    f"{part.dtype_policy.name}. Build it again under "
                    'keras.mixed_precision.set_global_policy("float32") and copy the weights.'
                )


class _Flattener:
    """Makes the calls of a model and of those nested in it, all in one graph.

    Args:
        found: what `_find_layers` gave.
    """

    def __init__(self, found: dict[int, _Place]) -> None:
        self._taken: set[str] = set()
        self._found = found
        self._added: dict[str, str] = {}
        names = {}
        for key, (layer, _, outer, _) in found.items():
            # A nested model leaves no layer, nor do its inputs.
            inner_input = isinstance(layer, keras.layers.InputLayer) and outer
            if not inner_input and not is_network(layer):
                free = layer.name not in self._taken
                names[key] = self.unique(layer.name if free else f"{outer}_{layer.name}")
        self._rebuilder = Rebuilder(names, Splitter(self.unique))

    def build(self, graph: CallGraph) -> keras.Model:
        """The flat model."""
        flat = self._rebuilder.build(graph, partial(self._visit, graph, None))
        for layer, parts in self._rebuilder.made():
            if self._found[id(layer)].frozen:
                for part in parts:
                    part.trainable = False
        return flat

    def unique(self, name: str) -> str:
        """`name`, or with a number behind it if it is taken; from now on it is."""
        number, free = 1, name
        while free in self._taken:
            free, number = f"{name}_{number}", number + 1
        self._taken.add(free)
        return free

    def origins(self) -> dict[str, str]:
        """Name of each new layer → path of the layer it stands for."""
        found = dict(self._added)
        for layer, parts in self._rebuilder.made():
            for part in parts:
                found.setdefault(part.name, self._found[id(layer)].path)
        return found

    def _visit(
        self,
        graph: CallGraph,
        training: Any,
        call: Call,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """A call in `graph`; `training` is what that was called with, None if nothing."""
        nested = graph.nested.get(call.name)
        if nested is not None:
            return self._enter(nested, args, kwargs, training)
        if training is not None:
            args, kwargs = with_training(call.layer, training, args, kwargs)
        return self._rebuilder.copy(call, args, kwargs)

    def _enter(self, graph: CallGraph, args: Any, kwargs: Any, training: Any) -> list[Any]:
        """One call of a nested model."""
        model = graph.model
        given = inspect.signature(model.call).bind(*args, **kwargs).arguments
        if given.get("mask") is not None:
            raise ValueError(
                "`model`: expected nested models called without `mask`, received "
                f"{self._found[id(model)].path!r} with one. Mask its input with a "
                "keras.layers.Masking instead."
            )
        own = training if given.get("training") is None else given["training"]
        fitted = [
            self._fit(tensor, reference, model)
            for tensor, reference in zip(
                inputs_in_order(model, given["inputs"]), model.inputs, strict=True
            )
        ]
        return self._rebuilder.follow(graph, fitted, partial(self._visit, graph, own))

    def _fit(self, tensor: Any, reference: Any, model: keras.Model) -> Any:
        """What Keras does to a tensor that is not quite what a nested model asks for."""

        def operation(function: Any) -> Any:
            name = self.unique(f"{model.name}_{function.__name__}")
            self._added[name] = self._found[id(model)].path
            return TFOpLambda(function, name=name)

        rank, wanted = tensor.shape.rank, reference.shape.rank
        if rank is not None and wanted is not None:
            if rank == wanted + 1 and tensor.shape[-1] == 1:
                tensor = operation(tf.squeeze)(tensor, axis=-1)
            elif rank == wanted - 1 and reference.shape[-1] == 1:
                tensor = operation(tf.expand_dims)(tensor, axis=-1)
        if tensor.dtype != reference.dtype:
            tensor = operation(tf.cast)(tensor, dtype=reference.dtype)
        return tensor
