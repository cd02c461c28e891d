"""Deployment of a QAT model: batch-norm folding, quantized weights, constant ranges.

Training needs float weights, batch normalizations as layers, and variable ranges. A
converter needs weights rounded to their integer grid, batch normalizations folded into
them, and constant ranges exactly where the runtime reads integers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from tfkd import checks
from tfkd.networks.batch_norm import as_rescaling, folded, is_norm_elsewhere, scale_and_offset
from tfkd.networks.call_graph import Call, CallGraph
from tfkd.networks.copy_layer import copy_layer
from tfkd.networks.layer_parts import unfuse
from tfkd.networks.rebuild import Rebuilder
from tfkd.quantization import layer_roles
from tfkd.quantization.deployed_layers import Weighted, with_weights
from tfkd.quantization.fake_quant import SMALLEST
from tfkd.quantization.fixed_fake_quant import FixedQuantize
from tfkd.quantization.operations import Operation, feeds_int8, feeds_shared_grid, operations_of
from tfkd.quantization.quantized_model import QuantizedModel, check_quantized, range_variables
from tfkd.quantization.report import OUTPUT_ONLY
from tfkd.quantization.tflite_lowering import LiteForms, Range
from tfkd.quantization.wrappers import SLOPES, QuantizedLayer, QuantizedTensor

layers = keras.layers
TARGETS = ("tflite", "tensorrt")
# Their TFLite kernels reuse scale and zero point of the input.
_AVERAGES = (layers.AveragePooling1D, layers.AveragePooling2D)


def deployed(q: QuantizedModel, target: str = "tflite") -> keras.Model:
    """Creates a plain Keras model that computes what a quantized model computes in inference.

    It has plain layers, whose weights are rounded to their quantization grid, and
    `FixedQuantize` layers, which hold the ranges. Batch normalizations and per-channel
    scales are folded into the preceding layers, without loss. For TFLite, layers without an
    int8 kernel are decomposed: a batch normalization or rescaling that can't be folded
    becomes a 1×1 depthwise convolution, an average of tensors a sum and a multiplication.

    Args:
        q: a calibrated model from `tfkd.quantization.quantize`. It is not changed.
        target: "tflite" or "tensorrt"; `q` must be made for it, or for "both".

    Returns:
        A functional model with the inputs, outputs and output names of `q`, for inference
        only. For TFLite its outputs equal those of `q` up to float rounding, which can
        change a code by one; sums and products of more than two tensors are also
        quantized in between. For TensorRT it has fewer ranges than a `q` made for both.

    Raises:
        TypeError: if `q` is not a `QuantizedModel`.
        ValueError: if it is not calibrated, or was made for the other target.

    Example:
        >>> import tfkd
        >>> images = np.random.default_rng(0).normal(size=(8, 32, 32, 3)).astype("float32")
        >>> q = tfkd.quantization.quantize(tfkd.models.resnet(8))
        >>> tfkd.quantization.calibrate(q, images)
        >>> plain = deployed(q)
        >>> any(isinstance(layer, keras.layers.BatchNormalization) for layer in plain.layers)
        False
        >>> bool(np.abs(plain(images) - q(images)).max() < 0.05 * np.ptp(q(images)))
        True
    """
    check(q, target)
    model = _Deployer(CallGraph(q), target).build()
    model.trainable = False
    return model


def check(q: Any, target: str) -> None:
    """Raises unless `q` is calibrated and can be deployed to `target`."""
    checks.one_of("target", target, TARGETS)
    check_quantized("q", q)
    if q.target not in (target, "both"):
        fix = (
            "TensorRT needs symmetric ranges, and TFLite needs more of them. Quantize with "
            f"target={target!r}, or target='both' for one model that can be exported to either."
        )
        raise checks.value_error("q", f"a model made for {target!r} or 'both'", q.target, fix)
    if not q.calibrated:
        fix = "Set its ranges first: tfkd.quantization.calibrate(q, images)."
        raise checks.value_error("q", "a calibrated model", f"{q.name!r}, without ranges", fix)


def _weight_of(operation: Operation) -> np.ndarray | None:
    """The fake-quantized weight of a layer; None if it has none."""
    wrapper = operation.layer
    if not isinstance(wrapper, QuantizedLayer) or not wrapper._weight_vars:
        return None
    ((weight, quantizer, variables),) = wrapper._weight_vars
    return np.asarray(quantizer(weight, False, weights=variables))


class _Deployer:
    """Rebuilds the calls of a quantized model as plain layers."""

    def __init__(self, graph: CallGraph, target: str):
        q = graph.model
        self.lite = target == "tflite"
        self.symmetric = q.target != "tflite"
        self.rebuilder = Rebuilder()
        self._ranges = self._wanted(q)
        self._graph = graph
        self._taken = set(graph.layers)
        self._reserved = set(self._taken)
        self._operations = operations_of(graph)
        # Layers with a range whose values are computed in float.
        self._in_float = {
            one.layer.name
            for one in range_variables(q, fixed=True)
            if q.report.of(*one.place).action == OUTPUT_ONLY
        }
        self._layers: dict[int, Callable[[Any], Any]] = {}
        # id of a new tensor → (the tensor, which keeps the id in use; its range).
        self._grids: dict[int, tuple[Any, Range]] = {}
        self._forms = LiteForms(self.unique, self.symmetric)

    def build(self) -> keras.Model:
        """The plain model, without losses added by `add_loss`, which affect training only."""
        return self.rebuilder.build(self._graph, self.visit, keep_losses=False)

    def _wanted(self, q: QuantizedModel) -> dict[str, Range]:
        """Layer of `q` → its output range, if the target needs one."""
        found = {}
        for one in range_variables(q, fixed=True):
            if self.lite or q.report.of(*one.place).tensorrt:
                high = max(float(one.high.numpy()), SMALLEST)
                low = -high if one.quantizer.symmetric else float(one.low.numpy())
                found[one.layer.name] = (low, high)
        return found

    def unique(self, name: str) -> str:
        """`name`, or a similar free one, for a new layer; names of layers of `q` are free once."""
        if name in self._reserved:
            self._reserved.discard(name)
            return name
        plain, count = name, 0
        while name in self._taken:
            count, name = count + 1, f"{plain}_{count}"
        self._taken.add(name)
        return name

    def visit(self, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The new tensors of one call of `q`."""
        operation = self._operations[call.key]
        range_ = self._ranges.get(operation.name)
        if isinstance(operation.layer, QuantizedTensor):
            if range_ is None:
                return args[0]
            x = self._requantized(operation, operation.inputs[0], args[0], range_)
            return self._quantized(x, range_, operation.name)
        made = self._made(operation, operation.plain, args, kwargs, range_)
        if range_ is not None:
            made = self._requantized(operation, operation, made, range_)
            return self._quantized(made, range_, f"{operation.name}_range")
        if operation.kind.role == layer_roles.SAME:
            return self._rearranged(operation, made, args)
        return made

    def _made(
        self, operation: Operation, inner: Any, args: Any, kwargs: Any, range_: Range | None
    ) -> Any:
        """The output of an operation, before it is quantized."""
        if any(one.folded is operation for one in operation.inputs):
            return args[0]  # a batch normalization folded into the preceding layer
        if type(inner) in SLOPES and _weight_of(operation) is not None:
            return self._sloped(operation, inner, args[0])
        weights = self._weights(operation)
        if weights is not None:
            return self._weighted(operation, inner, args[0], *weights)
        if self.lite and len(args) == 1:
            sources = [self._range_of(tensor) for tensor in tf.nest.flatten(args)]
            made = self._forms(inner, args[0], sources, range_ or self._reader_range(operation))
            if made is not None:
                return made
            shape = operation.call.reads[0].shape
            if is_norm_elsewhere(inner, shape):
                return as_rescaling(inner, len(shape), self.unique(operation.name))(args[0])
        made = self.rebuilder.of(inner)
        for layer in made if self.lite else ():
            unfuse(layer)
        return made(*args, **kwargs)

    def _weights(self, operation: Operation) -> tuple[np.ndarray, np.ndarray | None] | None:
        """Fake-quantized kernel and bias of a layer, with its batch normalization folded in."""
        kernel = _weight_of(operation)
        if kernel is None:
            return None
        inner = operation.plain
        bias = inner.bias.numpy() if inner.use_bias else None
        if operation.folded is None:
            return kernel, bias
        return folded(inner, kernel, bias, operation.folded.plain)

    def _limits(self, operation: Operation, norm: Operation) -> np.ndarray:
        """Upper ends of the kernel range of each channel of a Dense layer with a folded norm.

        The shape is (units,), or () if all channels have the same.
        """
        ((weight, quantizer, _),) = operation.layer._weight_vars
        ends = np.abs(weight.numpy()).max(0 if quantizer.axes else None)
        scale, _ = scale_and_offset(norm.plain)
        if np.ndim(scale):
            scale = np.broadcast_to(scale, operation.layer.layer.units)
        return np.asarray(np.maximum(np.maximum(ends, SMALLEST) * np.abs(scale), SMALLEST))

    def _weighted(self, operation: Operation, inner: Any, x: Any, kernel: Any, bias: Any) -> Any:
        norm = operation.folded
        if self.lite and norm and isinstance(inner, layers.Dense):
            # Dense kernels are quantized per tensor; folding makes the scale per channel.
            limits, form = self._limits(operation, norm), self._forms.dense_as_convolution
            made = form(inner, x, kernel, bias, limits) if limits.ndim else None
            if made is not None:
                return made
        if id(operation.layer) not in self._layers:
            name = self.unique(operation.name)
            self._layers[id(operation.layer)] = with_weights(
                inner, name, kernel, bias, lite=self.lite and x.shape.rank > 2
            )
        return self._layers[id(operation.layer)](x)

    def _sloped(self, operation: Operation, inner: Any, x: Any) -> Any:
        """The output of a layer with its slopes on the grid from which TFLite takes codes."""
        if id(operation.layer) not in self._layers:
            copy = copy_layer(inner, self.unique(operation.name))
            self._layers[id(operation.layer)] = Weighted(copy, _weight_of(operation), None)
        return self._layers[id(operation.layer)](x)

    def _quantized(self, x: Any, range_: Range, name: str) -> Any:
        """`x` quantized over a range."""
        layer = FixedQuantize(
            *range_,
            narrow_range=self.symmetric,
            emit="fake_quant" if self.lite else "quantize_dequantize",
            name=self.unique(name),
        )
        made = layer(x)
        self._grids[id(made)] = made, range_
        return made

    def _requantized(self, end: Operation, operation: Operation, made: Any, range_: Range) -> Any:
        """Inserts an explicit requantization from a range that TFLite prescribes.

        A sigmoid has the output range [0, 1], and average pooling that of its input. The
        converter changes the scale of such a tensor once, but not again for a concatenation,
        and that of what is computed in float not at all. A scale that clips it would replace.

        Args:
            end: the call whose readers read the result.
            operation: the call that computes the tensor.
            made: its new tensor.
            range_: the range that the readers need.
        """
        inner = operation.plain
        # Channels-first pooling is converted with transpositions around it, between which
        # the converter confuses the two ranges.
        first = type(inner) in _AVERAGES and inner.data_format == "channels_first"
        if not self.lite or not (first or feeds_shared_grid(end)):
            return made
        prescribed = operation.kind.fixed
        if type(inner) in _AVERAGES and not isinstance(made.node.layer, layers.DepthwiseConv2D):
            prescribed = self._range_of(made.node.keras_inputs[0])
        if end.name in self._in_float or operation.kind.clips:
            prescribed = range_
        elif prescribed in (None, range_):
            return made
        narrow = self.symmetric and prescribed == range_
        name = self.unique(f"{operation.name}_prescribed")
        made = FixedQuantize(*prescribed, narrow_range=narrow, name=name)(made)
        one, zero = np.asarray(1.0), np.asarray(0.0)
        same = self._forms.scaled(made, one, zero, f"{operation.name}_rescaled")
        return made if same is None else same

    def _rearranged(self, operation: Operation, made: Any, args: Any) -> Any:
        """Propagates the range of the input; TensorRT needs a QDQ pair before each int8 layer."""
        sources = [self._range_of(tensor) for tensor in tf.nest.flatten(args)]
        range_ = sources[0] if len(sources) == 1 else None
        if range_ is None:
            return made
        if not self.lite and len(operation.call.outputs) == 1 and feeds_int8(operation):
            return self._quantized(made, range_, f"{operation.name}_range")
        for tensor in tf.nest.flatten(made):
            self._grids[id(tensor)] = tensor, range_
        return made

    def _range_of(self, tensor: Any) -> Range | None:
        found = self._grids.get(id(tensor))
        return None if found is None else found[1]

    def _reader_range(self, operation: Operation) -> Range | None:
        """The range of a call that has none of its own: that of what alone reads it.

        It is that of a `QuantizedTensor`, of the ReLU that is fused with a sum, or of the
        concatenation on whose grid the result lies.
        """
        passing = (layer_roles.SAME, layer_roles.CONCAT, layer_roles.RELU)
        reader = operation.only_reader
        while reader is not None and reader.name not in self._ranges:
            reader = reader.only_reader if reader.kind.role in passing else None
        return None if reader is None else self._ranges[reader.name]
