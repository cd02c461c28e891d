"""From a float model to one that is trained as it will be deployed.

Reference: Jacob et al. 2018, Quantization and Training of Neural Networks for
Efficient Integer-Arithmetic-Only Inference, https://arxiv.org/abs/1712.05877
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import tensorflow as tf
import tf_keras as keras

from tfkd import checks
from tfkd.networks import layer_state, layer_weights, paths
from tfkd.networks.call_graph import Call, CallGraph, Key
from tfkd.networks.copy_layer import copy_layer, copy_state
from tfkd.networks.layer_parts import passed
from tfkd.networks.rebuild import Rebuilder
from tfkd.quantization import layer_roles
from tfkd.quantization.fake_quant import RangeQuantizer, WeightQuantizer
from tfkd.quantization.flattening.flatten import Flat, flatten
from tfkd.quantization.norm_statistics import is_batch_norm
from tfkd.quantization.operations import Operation, operations_of
from tfkd.quantization.placement import place
from tfkd.quantization.quantized_model import QuantizedModel
from tfkd.quantization.report import INT8, Decision
from tfkd.quantization.wrappers import WEIGHTS, LayerConfig, QuantizedLayer, QuantizedTensor
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
    """Makes a model that computes as 8-bit integers will, to be calibrated and trained.

    Weights are quantized to −127 … 127 with a scale for each output channel (one
    for a dense layer), activations with one range a tensor. Layers that the
    runtime computes as one (convolution, batch normalization, ReLU) are
    quantized as one. The four projections of `MultiHeadAttention` are dense layers of
    their own. What is decided for each layer is in `q.report`.

    Args:
        model: a built functional or Sequential tf_keras model in float32. It is not
            changed and shares nothing with the result. Models nested in it are
            entered; layers keep their names.
        target: "tflite"; "tensorrt": symmetric ranges, only where TensorRT reads 8
            bits; "both": the places of TFLite with symmetric ranges, so that one
            trained model goes to both.
        fallback: for layers without an 8-bit form (LayerNormalization, recurrent and
            custom layers, what stands between the projections of attention ...):
            "output_only": they compute in float and their output is quantized; "noop":
            they stay float, and so do layers that read them in TFLite; "error": raise.
        skip: layers that stay float: a name, a path ("backbone/conv1"), a pattern
            ("stage1_*"), a layer, or several of these in a list; a nested model means all
            layers in it.
        preserve_sparsity: weights that are 0 now stay 0 in training.
        freeze_batch_norm: batch normalizations compute in training as in inference, and
            neither their statistics nor gamma and beta change, whatever `trainable` is set
            to. Statistics that move on a few hundred images ruin a network that was trained
            on many. False, to train them: for long training on the data that the model
            was trained on.

    Returns:
        A `QuantizedModel`; calibrate it next.

    Raises:
        TypeError: if `model` is no tf_keras model, or `skip` no name.
        ValueError: if it is unbuilt, subclassed, quantized already or not in float32;
            for an unknown name; for layers without an 8-bit form with "error"; if a batch
            normalization is called with `training=True`, which no file can do.

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
    layer_weights.check_finite("model", model)
    _warn_of_tables(layer_state.tables(model))
    operations = operations_of(flat.graph)
    _refuse_batch_statistics(operations.values())
    floats = dict.fromkeys(_skipped(skip, model, flat), "left out by `skip`")
    rows = place(list(operations.values()), target, fallback, floats)
    recipe = {
        "target": target,
        "fallback": fallback,
        "skip": sorted(floats),
        "preserve_sparsity": bool(preserve_sparsity),
        "freeze_batch_norm": freeze_batch_norm,
        "decisions": plain(rows),
    }
    return _Builder(operations, rows, recipe).build(flat.graph)


def _check_floatx() -> None:
    """The layers that quantize are made in Keras's own type."""
    kind = keras.backend.floatx()
    if kind == "float64":
        mend = "Call keras.backend.set_floatx('float32') first."
        raise checks.value_error("floatx", "float32, which fake quantization takes", kind, mend)


def rebuild(
    flat: keras.Model, rows: Sequence[Decision], recipe: Mapping[str, Any]
) -> QuantizedModel:
    """Makes the quantized model that was decided on, with new ranges.

    Args:
        flat: the flat float model, as `QuantizedModel.float_config` describes it.
        rows: a decision for each of its calls, in order.
        recipe: the arguments of `quantize`, as in `QuantizedModel.recipe`.

    Returns:
        The `QuantizedModel`, uncalibrated, with the weights of `flat`.

    Raises:
        ValueError: if the decisions are not those of this model.
    """
    graph = CallGraph(flat)
    operations = operations_of(graph)
    received = [(row.layer, row.call) for row in rows]
    if list(operations) != received:
        odd = next((row for row in received if row not in operations), len(received))
        raise checks.value_error("rows", f"a decision for each of {len(operations)} calls", odd)
    return _Builder(operations, rows, recipe).build(graph)


def _warn_of_tables(found: Sequence[Any]) -> None:
    if found:
        warnings.warn(
            f"quantize: {found[0].name!r} ({type(found[0]).__name__}) looks words or numbers up in "
            "a table, which neither TFLite nor ONNX files can hold: this model can be trained, but "
            "not exported. To export it, split it behind that layer and quantize the rest: "
            "keras.Model(model.get_layer(NEXT).input, model.outputs).",
            stacklevel=3,
        )


def _refuse_batch_statistics(operations: Iterable[Operation]) -> None:
    """A file computes with the moving statistics alone."""
    for one in operations:
        if not is_batch_norm(one.layer) or not one.layer.trainable:
            continue
        if passed(one.layer, "training", one.call.args, one.call.kwargs) is True:
            mend = "Build the model again without `training=True`, or freeze the layer."
            received = f"{one.name!r}, called with training=True: statistics of each batch"
            raise checks.value_error(
                "model", "batch normalizations that use their moving statistics", received, mend
            )


def _skipped(skip: paths.Entries, model: keras.Model, flat: Flat) -> list[str]:
    """Names of the flat model's layers for the entries that the user gave."""
    # A part of a layer may be named too: "conv_depthwise" of a SeparableConv2D.
    known = [*dict.fromkeys([*flat.origins.values(), *flat.origins])]
    found = set(paths.matching("skip", skip, known, model))
    return [name for name, path in flat.origins.items() if not found.isdisjoint((name, path))]


class _Builder:
    """Makes the calls of the quantized model."""

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
        self.wrappers: dict[int, tuple[Any, QuantizedLayer]] = {}
        self.names = {operation.name for operation in operations.values()}
        self.places: dict[str, Key] = {}

    def build(self, graph: CallGraph) -> QuantizedModel:
        """Makes every call of a flat model again, wrapped as decided."""
        q = self.rebuilder.build(graph, self.visit, self.behind, QuantizedModel)
        for layer, wrapper in self.wrappers.values():
            copy_state(layer, [wrapper.layer])
            for weight, _, variables in wrapper._weight_vars:
                if "mask" in variables:
                    variables["mask"].assign(tf.cast(weight != 0, tf.float32))
        float_config = graph.model.to_json()
        q._describe(self.recipe["target"], self.recipe, float_config, self.rows, self.places)
        return q

    def visit(self, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """One call, and what is put behind it."""
        operation, row = self.decided[call.key]
        inside = row.output and _can_wrap(operation)
        weighted = row.action == INT8 and type(call.layer) in WEIGHTS
        if not inside and not weighted:
            made = self.rebuilder.copy(call, args, kwargs)
        else:
            made = self._wrapper(operation, weighted, inside)(*args, **kwargs)
        return made if inside else self.behind(call, made)

    def behind(self, call: Call, tensors: Any) -> Any:
        """Puts a range behind tensors that no wrapper holds one for."""
        operation, row = self.decided[call.key]
        if not row.output:
            return tensors
        return tf.nest.map_structure(lambda tensor: self._on_grid(operation, tensor), tensors)

    def _on_grid(self, operation: Operation, tensor: Any) -> Any:
        if not tensor.dtype.is_floating:
            return tensor
        plain = name = _layer_name(f"{operation.name}_quantize")
        count = 0
        while name in self.names:
            count, name = count + 1, f"{plain}_{count + 1}"
        self.names.add(name)
        self.places[name] = operation.call.key
        return QuantizedTensor(self._range(operation), name=name)(tensor)

    def _range(self, operation: Operation) -> RangeQuantizer:
        fixed = operation.kind.fixed
        return RangeQuantizer(
            self.symmetric, layer_roles.symmetric(fixed) if self.symmetric else fixed
        )

    def _wrapper(self, operation: Operation, weighted: bool, inside: bool) -> QuantizedLayer:
        layer = operation.layer
        if id(layer) not in self.wrappers:
            weight, axes = WEIGHTS[type(layer)] if weighted else (None, ())
            keep_zeros = self.recipe["preserve_sparsity"]
            config = LayerConfig(
                weight,
                WeightQuantizer(axes, keep_zeros) if weighted else None,
                self._range(operation) if inside else None,
            )
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
    """True if a wrapper can hold the range of the output: the one tensor of the one call."""
    plain = operation.kind.role not in (layer_roles.UNKNOWN, layer_roles.INPUT) and not hasattr(
        operation.layer, "function"
    )
    return plain and not operation.shared and len(operation.call.outputs) == 1
