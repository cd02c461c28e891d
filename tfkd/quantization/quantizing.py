"""`quantize`: inserts fake quantization into a float model, for quantization-aware training.

Reference: Jacob et al. 2018, Quantization and Training of Neural Networks for
Efficient Integer-Arithmetic-Only Inference, https://arxiv.org/abs/1712.05877
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import tensorflow as tf
import tf_keras as keras

from tfkd import checks
from tfkd.networks import layer_state, paths
from tfkd.networks.call_graph import Call, CallGraph, Key
from tfkd.networks.copy_layer import copy_layer, copy_state
from tfkd.networks.layer_parts import free_name, parts, passed
from tfkd.networks.rebuild import Rebuilder
from tfkd.quantization import layer_roles
from tfkd.quantization.fake_quant import RangeQuantizer, WeightQuantizer
from tfkd.quantization.flattening.flatten import Flat, flatten
from tfkd.quantization.norm_statistics import is_batch_norm
from tfkd.quantization.operations import Operation, operations_of
from tfkd.quantization.placement import place
from tfkd.quantization.quantized_model import QuantizedModel
from tfkd.quantization.report import INT8, Decision
from tfkd.quantization.wrappers import (
    SLOPES,
    WEIGHTS,
    LayerConfig,
    QuantizedLayer,
    QuantizedTensor,
)
from tfkd.results import plain

TARGETS = ("tflite", "tensorrt", "both")
FALLBACKS = ("output_only", "noop", "error")


def quantize(
    model: keras.Model,
    target: str = "tflite",
    fallback: str = "output_only",
    skip: paths.Entries = (),
    preserve_sparsity: bool = False,
    freeze_batch_norm: bool = True,
) -> QuantizedModel:
    """Creates a model that simulates 8-bit integer arithmetic, to be calibrated and trained.

    Weights are quantized symmetrically to −127 … 127, per output channel (per tensor for
    dense layers), activations per tensor. Layers that the runtime fuses into one kernel
    (convolution, batch normalization, ReLU) get one range, at their end. The four
    projections of `MultiHeadAttention` become separate dense layers. `q.report` lists the
    decision for each layer.

    Args:
        model: a built functional or Sequential tf_keras model in float32. It is not
            changed, and shares no variable with the result. Nested models are inlined;
            layers keep their names.
        target: "tflite"; "tensorrt": symmetric ranges, only where TensorRT reads int8;
            "both": ranges at the positions of TFLite, but symmetric, so that one trained
            model can be exported to both.
        fallback: for layers without an int8 implementation (LayerNormalization, recurrent
            and custom layers, attention scores, ...): "output_only": they compute in float
            and their output is quantized; "noop": they stay float, and in TFLite so do
            layers that read them; "error": raise an error.
        skip: layers to keep in float: a name, a path ("backbone/conv1"), a pattern
            ("stage1_*"), a layer, or a list of these; a nested model stands for all layers
            in it.
        preserve_sparsity: keep weights at 0 in training that are 0 now.
        freeze_batch_norm: batch normalizations compute in training as in inference, and
            neither their statistics nor gamma and beta change, whatever `trainable` is set
            to. Updating the statistics on a few hundred images degrades a network that was
            trained on many. Set it to False for long training on the original data.

    Returns:
        A `QuantizedModel`; calibrate it next.

    Raises:
        TypeError: if `model` is not a tf_keras model, or an entry of `skip` is not a name
            or a layer.
        ValueError: if the model is not built, is subclassed, quantized already or not in
            float32; if an entry of `skip` matches nothing; if layers have no int8
            implementation with fallback "error"; or if a batch normalization is called
            with `training=True`, which deployed files do not support.

    Example:
        >>> import numpy as np, tfkd
        >>> images = np.random.default_rng(0).normal(size=(8, 32, 32, 3)).astype("float32")
        >>> q = tfkd.quantization.quantize(tfkd.models.resnet(8), target="both", skip=["logits"])
        >>> tfkd.quantization.calibrate(q, images)
        >>> q(images).shape
        TensorShape([8, 10])
        >>> print(q.report.of("logits").why)
        left out by `skip`
    """
    checks.one_of("target", target, TARGETS)
    checks.one_of("fallback", fallback, FALLBACKS)
    checks.instance("freeze_batch_norm", freeze_batch_norm, bool, "True or False")
    _check_floatx()
    flat = flatten(model)
    tables = layer_state.tables(model)
    if tables:
        _warn_of_table(tables[0])
    _warn_of_memory(parts(model))
    floats = dict.fromkeys(_skipped(skip, model, flat), "left out by `skip`")
    operations = operations_of(flat.graph)
    _refuse_batch_statistics(operations.values())
    rows = place(list(operations.values()), target, fallback, floats)
    recipe = {
        "target": target,
        "fallback": fallback,
        "skip": sorted(floats),
        "preserve_sparsity": bool(preserve_sparsity),
        "freeze_batch_norm": freeze_batch_norm,
        "decisions": plain(rows),
    }
    q = _Builder(operations, rows, recipe).build(flat.graph)
    layer_state.copy_declaration(model, q)
    return q


def _check_floatx() -> None:
    """Raises if Keras would create the quantizers in float64, which TensorFlow rejects."""
    kind = keras.backend.floatx()
    if kind == "float64":
        fix = "Call keras.backend.set_floatx('float32') first."
        raise checks.value_error("floatx", "float32, which fake quantization takes", kind, fix)


def rebuild(
    flat: keras.Model, rows: Sequence[Decision], recipe: Mapping[str, Any]
) -> QuantizedModel:
    """Creates a quantized model from stored decisions, with unset ranges.

    Args:
        flat: the flat float model, as described by `QuantizedModel.float_config`.
        rows: one decision for each of its calls, in order.
        recipe: the arguments of `quantize`, as in `QuantizedModel.recipe`.

    Returns:
        The `QuantizedModel`, uncalibrated, with the weights of `flat`.

    Raises:
        ValueError: if the decisions belong to another model.
    """
    graph = CallGraph(flat)
    operations = operations_of(graph)
    received = [(row.layer, row.call) for row in rows]
    if list(operations) != received:
        odd = next((row for row in received if row not in operations), len(received))
        raise checks.value_error("rows", f"a decision for each of {len(operations)} calls", odd)
    return _Builder(operations, rows, recipe).build(graph)


def _warn_of_table(layer: keras.layers.Layer) -> None:
    checks.warn(
        f"quantize: {layer.name!r} ({type(layer).__name__}) looks words or numbers up in "
        "a table, which neither TFLite nor ONNX files can hold: this model can be trained and "
        "saved as a SavedModel. For the others, split it after that layer and quantize the rest: "
        f"keras.Model(model.get_layer({layer.name!r}).output, model.outputs)."
    )


def _warn_of_memory(found: Iterable[Any]) -> None:
    recurrent = [part for part in found if isinstance(part, keras.layers.RNN)]
    names = [part.name for part in recurrent if part.stateful]
    if names:
        checks.warn(
            f"quantize: {names[0]!r} keeps its state from call to call (stateful=True), as no file "
            "does: this model can be trained, but not exported. To export it, build it with "
            "stateful=False."
        )


def _refuse_batch_statistics(operations: Iterable[Operation]) -> None:
    """Raises for batch normalizations that use batch statistics, which files do not support."""
    for one in operations:
        if not is_batch_norm(one.layer) or not one.layer.trainable:
            continue
        if passed(one.layer, "training", one.call.args, one.call.kwargs) is True:
            fix = "Build the model again without `training=True`, or freeze the layer."
            received = f"{one.name!r}, called with training=True: statistics of each batch"
            raise checks.value_error(
                "model", "batch normalizations that use their moving statistics", received, fix
            )


def _skipped(skip: paths.Entries, model: keras.Model, flat: Flat) -> list[str]:
    """Names of the layers of the flat model that `skip` selects."""
    # Parts of decomposed layers may be named, too: "conv_depthwise" of a SeparableConv2D.
    known = [*dict.fromkeys([*flat.origins.values(), *flat.origins])]
    found = set(paths.matching("skip", skip, known, model))
    return [name for name, path in flat.origins.items() if not found.isdisjoint((name, path))]


class _Builder:
    """Rebuilds the calls of a flat model with quantizers, as decided."""

    def __init__(
        self,
        operations: Mapping[Key, Operation],
        rows: Sequence[Decision],
        recipe: Mapping[str, Any],
    ):
        pairs = zip(operations.items(), rows, strict=True)
        self.decided = {key: (operation, row) for (key, operation), row in pairs}
        self.recipe, self.rows = recipe, rows
        self.symmetric = recipe["target"] != "tflite"
        self.rebuilder = Rebuilder()
        self.wrappers: dict[int, tuple[keras.layers.Layer, QuantizedLayer]] = {}
        self.names = {operation.name for operation in operations.values()}
        self.places: dict[str, Key] = {}

    def build(self, graph: CallGraph) -> QuantizedModel:
        """The quantized model of a flat model."""
        q = self.rebuilder.build(graph, self.visit, self.ranged, QuantizedModel)
        for layer, wrapper in self.wrappers.values():
            copy_state(layer, [wrapper.layer])
            for weight, _, variables in wrapper._weight_vars:
                if "mask" in variables:
                    variables["mask"].assign(tf.cast(weight != 0, tf.float32))
        float_config = graph.model.to_json()
        q._describe(self.recipe["target"], self.recipe, float_config, self.rows, self.places)
        return q

    def visit(self, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Rebuilds one call, wrapped and followed by a quantizer as decided."""
        operation, row = self.decided[call.key]
        inside = row.output and _can_wrap(operation)
        weight = self._weight(call.layer) if row.action == INT8 else None
        if not inside and weight is None:
            made = self.rebuilder.copy(call, args, kwargs)
        else:
            made = self._wrapper(operation, weight, inside)(*args, **kwargs)
        return made if inside else self.ranged(call, made)

    def ranged(self, call: Call, tensors: Any) -> Any:
        """Appends a `QuantizedTensor` to each output of a call without a wrapper."""
        operation, row = self.decided[call.key]
        if not row.output:
            return tensors
        return tf.nest.map_structure(lambda tensor: self._quantized(operation, tensor), tensors)

    def _quantized(self, operation: Operation, tensor: Any) -> Any:
        if not tensor.dtype.is_floating:
            return tensor
        name = free_name(_layer_name(f"{operation.name}_quantize"), self.names)
        self.names.add(name)
        self.places[name] = operation.call.key
        return QuantizedTensor(self._range(operation), name=name)(tensor)

    def _range(self, operation: Operation) -> RangeQuantizer:
        fixed = operation.kind.fixed
        return RangeQuantizer(
            self.symmetric, layer_roles.symmetric(fixed) if self.symmetric else fixed
        )

    def _weight(self, layer: keras.layers.Layer) -> tuple[str, WeightQuantizer] | None:
        """The weight of an int8 layer that is quantized, and its quantizer."""
        kind = type(layer)
        if kind in WEIGHTS:
            name, axes = WEIGHTS[kind]
            return name, WeightQuantizer(axes, self.recipe["preserve_sparsity"])
        if kind in SLOPES and self.recipe["target"] != "tensorrt":
            return SLOPES[kind], WeightQuantizer()
        return None

    def _wrapper(
        self, operation: Operation, weight: tuple[str, WeightQuantizer] | None, inside: bool
    ) -> QuantizedLayer:
        layer = operation.layer
        if id(layer) not in self.wrappers:
            name, quantizer = weight or (None, None)
            config = LayerConfig(name, quantizer, self._range(operation) if inside else None)
            if inside:
                self.places[operation.name] = operation.call.key
            wrapper = QuantizedLayer(copy_layer(layer), config, name=operation.name)
            self.wrappers[id(layer)] = (layer, wrapper)
        return self.wrappers[id(layer)][1]


def _layer_name(name: str) -> str:
    """A name that TensorFlow takes for a layer, where an input may have any."""
    name = re.sub(r"[^A-Za-z0-9_.\\/>-]", "_", name)
    return name if re.match(r"[A-Za-z0-9.]", name) else f"input{name}"


def _can_wrap(operation: Operation) -> bool:
    """True if a wrapper can hold the output range: a single call with a single output."""
    plain = operation.kind.role not in (layer_roles.UNKNOWN, layer_roles.INPUT) and not hasattr(
        operation.layer, "function"
    )
    return plain and not operation.shared and len(operation.call.outputs) == 1
