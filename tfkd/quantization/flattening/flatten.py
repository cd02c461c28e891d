"""Flattens a model for quantization: inlines nested models and decomposes composite layers.

Quantization decides on single layers and the tensors between them. So nested models are
inlined, composite layers are decomposed, and explicit hard swishes are fused; the model
still computes the same function.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import tensorflow as tf
import tf_keras as keras

from tfkd.keras_internals import TFOpLambda
from tfkd.networks.accept import check_graph, quantized
from tfkd.networks.call_graph import Call, CallGraph, is_network
from tfkd.networks.layer_parts import flat_layers, free_name, inputs_in_order, with_training
from tfkd.networks.rebuild import Rebuilder
from tfkd.quantization.fixed_fake_quant import FixedQuantize
from tfkd.quantization.flattening.decompose import Splitter
from tfkd.quantization.flattening.hard_swish import fuse_hard
from tfkd.quantization.wrappers import QuantizedLayer, QuantizedTensor

HALF = ("float16", "bfloat16")
_QUANTIZED = (FixedQuantize, QuantizedLayer, QuantizedTensor)


@dataclass(frozen=True)
class Flat:
    """A flat model and the origins of its layers.

    Attributes:
        graph: call graph of a functional model without nested models, on new layers.
        origins: name of a layer of `model` → path of the user's layer that it represents,
            such as "backbone/conv1" in a nested model; InputLayers included.
    """

    graph: CallGraph
    origins: dict[str, str]

    @property
    def model(self) -> keras.Model:
        """The flat model."""
        return self.graph.model


def flatten(model: keras.Model) -> Flat:
    """Returns a flat model on new layers that computes the same function.

    Nested models are inlined, at any depth. `SeparableConv2D` becomes a `DepthwiseConv2D`
    ("<name>_depthwise") and a 1×1 `Conv2D` of its name; an activation inside a convolution
    or dense layer, other than linear, ReLU or ReLU6, becomes an `Activation` after it
    ("<name>_swish"); x·relu6(x + 3)/6 built from several layers becomes a `HardSwish`, and
    relu6(x + 3)/6 a `HardSigmoid`. The layer x + s·y of Inception-ResNet becomes a
    `Rescaling` ("<name>_scaled") and an `Add` of its name. `MultiHeadAttention` becomes
    `Dense` layers ("<name>_query", "<name>_key", "<name>_value"), a `HeadAttention`
    ("<name>_heads") and a `Dense` of its name. All other layers are copied with their
    names, weights, regularizers and `trainable` flags, and shared layers remain shared. A
    layer of a nested model whose name is taken is renamed to "<model>_<name>".

    Args:
        model: a built functional or Sequential `tf_keras` model in float32; not changed.

    Returns:
        A `Flat`, whose model has the inputs and outputs of `model` in the same structure.
        Outputs are equal up to float rounding, and no variable is shared with `model`.

    Raises:
        TypeError: if `model` is not a `tf_keras` model.
        ValueError: if it is not built, is subclassed, quantized already or of mixed
            precision; if weights are NaN or infinite; or if a layer can't be rebuilt from
            its config.

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
    graph = check_graph("model", model, finite=True, float32="Fake quantization")
    found = _find_layers(graph, not model.trainable)
    _check_layers(found)
    flattener = _Flattener(found)
    flat = flattener.build(graph)
    origins = {call.name: call.name for call in graph.calls.values() if call.is_input}
    origins.update(flattener.origins())
    flat, origins = fuse_hard(CallGraph(flat), origins)
    # Losses from `add_loss` are layers, too, but represent none of the user's layers.
    return Flat(flat, {name: origins[name] for name in flat.layers if name in origins})


class _Place(NamedTuple):
    """A layer, its path and its outer model; `frozen`: an outer model is not trainable."""

    layer: keras.layers.Layer
    path: str
    outer: str
    frozen: bool


def _find_layers(graph: CallGraph, frozen: bool) -> dict[int, _Place]:
    """All layers and nested models by id, in breadth-first order."""
    found: dict[int, _Place] = {}
    todo = [(graph, "", "", frozen)]
    while todo:
        graph, prefix, outer, frozen = todo.pop(0)
        for name, layer in graph.layers.items():
            known = found.get(id(layer), _Place(layer, prefix + name, outer, frozen))
            # A layer shared by two models trains if either of them is trainable.
            found[id(layer)] = known._replace(frozen=frozen and known.frozen)
            if name in graph.nested:
                frozen_in = frozen or not layer.trainable
                todo.append((graph.nested[name], f"{prefix}{name}/", name, frozen_in))
    return found


def _check_layers(found: dict[int, _Place]) -> None:
    """Raises for layers that are quantized, wrapped for pruning, or in half precision."""
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
    """Rebuilds the calls of a model and of its nested models in a single graph.

    Args:
        found: the result of `_find_layers`.
    """

    def __init__(self, found: dict[int, _Place]) -> None:
        self._taken: set[str] = set()
        self._found = found
        self._added: dict[str, str] = {}
        names = {}
        for key, (layer, _, outer, _) in found.items():
            # Nested models and their input layers do not become layers of the flat model.
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
        """Reserves and returns `name`, with a numeric suffix if it is taken."""
        free = free_name(name, self._taken)
        self._taken.add(free)
        return free

    def origins(self) -> dict[str, str]:
        """Name of each new layer → path of the layer that it represents."""
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
        """Rebuilds a call in `graph`; `training` is the argument of the graph's own call."""
        nested = graph.nested.get(call.name)
        if nested is not None:
            return self._enter(nested, args, kwargs, training)
        if training is not None:
            args, kwargs = with_training(call.layer, training, args, kwargs)
        return self._rebuilder.copy(call, args, kwargs)

    def _enter(self, graph: CallGraph, args: Any, kwargs: Any, training: Any) -> list[Any]:
        """Inlines one call of a nested model."""
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
        """Adapts rank and dtype of a tensor to an input of a nested model, as Keras does."""

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
