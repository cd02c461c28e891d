"""The plain model that a quantized one stands for, ready for a converter.

Training needs the float weights, the batch normalization as a layer and ranges
that move. A converter needs what is left in the end: weights that lie on their
integer grid, batch normalizations folded into them, and constant ranges where
the runtime reads integers, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from tfkd import checks
from tfkd.networks.batch_norm import as_rescaling, folded, is_norm_elsewhere, scale_and_offset
from tfkd.networks.call_graph import Call, CallGraph
from tfkd.networks.rebuild import Rebuilder
from tfkd.quantization import layer_roles
from tfkd.quantization.deployed_layers import with_weights
from tfkd.quantization.fake_quant import SMALLEST
from tfkd.quantization.fixed_fake_quant import FixedQuantize
from tfkd.quantization.operations import Operation, operations_of
from tfkd.quantization.quantized_model import QuantizedModel, check_quantized, range_variables
from tfkd.quantization.tflite_lowering import LiteForms, Range
from tfkd.quantization.wrappers import QuantizedLayer, QuantizedTensor

layers = keras.layers
TARGETS = ("tflite", "tensorrt")
# TFLite's kernels keep the grid of the input.
_AVERAGES = (layers.AveragePooling1D, layers.AveragePooling2D)


def deployed(q: QuantizedModel, target: str = "tflite") -> keras.Model:
    """A plain Keras model that computes what a quantized model computes in inference.

    It has plain layers, whose weights lie on the grids of their integers, and
    `FixedQuantize` layers, which hold the ranges. Batch normalizations and factors of
    channels are folded into the layers before them, without loss. For TFLite, what has
    no integer form of its own is written in parts that have: a lone batch normalization
    or rescaling as a 1×1 depthwise convolution, a mean as a sum and a factor.

    Args:
        q: from `tfkd.quantization.quantize`, calibrated. It is not changed.
        target: "tflite" or "tensorrt"; `q` must be made for it, or for "both".

    Returns:
        A functional model with the inputs, the outputs and their names of `q`, for
        inference alone. For TFLite its outputs are those of `q` up to float
        rounding, which can move a number that lies between two codes to the other;
        sums and products of more than two tensors are rounded between. For TensorRT
        it has fewer ranges than `q`, if `q` is made for both.

    Raises:
        TypeError: if `q` is no `QuantizedModel`.
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
    """Raises if `q` can't be deployed to `target`."""
    checks.one_of("target", target, TARGETS)
    check_quantized("q", q)
    if q.target not in (target, "both"):
        mend = (
            "TensorRT wants symmetric ranges, and TFLite more of them. Quantize with "
            f"target={target!r}, or target='both' for one model that goes to either."
        )
        raise checks.value_error("q", f"a model made for {target!r} or 'both'", q.target, mend)
    if not q.calibrated:
        mend = "Set its ranges first: tfkd.quantization.calibrate(q, images)."
        raise checks.value_error("q", "a calibrated model", f"{q.name!r}, without ranges", mend)


class _Deployer:
    """Makes the calls of the plain model."""

    def __init__(self, graph: CallGraph, target: str):
        q = graph.model
        self.lite = target == "tflite"
        self.symmetric = q.target != "tflite"
        self.rebuilder = Rebuilder()
        self._graph = graph
        self._operations = operations_of(graph)
        self._taken = set(graph.layers)
        self._reserved = set(self._taken)
        self._folds = _folds(self._operations.values())
        self._ranges = self._wanted(q)
        self._layers: dict[int, Callable[[Any], Any]] = {}
        # id of a new tensor → (the tensor, which keeps the id in use; its range).
        self._grids: dict[int, tuple[Any, Range]] = {}
        self._forms = LiteForms(self.unique, self.symmetric)

    def build(self) -> keras.Model:
        """The plain model; losses that were added are of training alone."""
        return self.rebuilder.build(self._graph, self.visit, keep_losses=False)

    def _wanted(self, q: QuantizedModel) -> dict[str, Range]:
        """Layer of `q` → its range, where the target has one."""
        found = {}
        for one in range_variables(q, fixed=True):
            if self.lite or q.report.of(*one.place).tensorrt:
                high = max(float(one.high.numpy()), SMALLEST)
                low = -high if one.quantizer.symmetric else float(one.low.numpy())
                found[one.layer.name] = (low, high)
        return found

    def unique(self, name: str) -> str:
        """`name`, or a similar one, for a new layer. The name of a layer of `q` is given once."""
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
            settled = self._settled(operation, operation.inputs[0], args[0], range_)
            return self._grid(settled, range_, operation.name)
        inner = operation.plain
        made = self._made(operation, inner, args, kwargs, range_)
        if range_ is not None:
            made = self._settled(operation, operation, made, range_)
            return self._grid(made, range_, f"{operation.name}_range")
        if operation.kind.role == layer_roles.SAME:
            return self._moved(operation, made, args)
        return made

    def _made(
        self, operation: Operation, inner: Any, args: Any, kwargs: Any, range_: Range | None
    ) -> Any:
        """The output of an operation, before its range."""
        if operation in self._folds.values():
            return args[0]  # a batch normalization that the layer before it holds
        weights = self._weights(operation)
        if weights is not None:
            return self._weighted(operation, inner, args[0], *weights)
        if self.lite and len(args) == 1:
            sources = [self._range_of(tensor) for tensor in tf.nest.flatten(args)]
            own = range_ or self._reader_range(operation)
            made = self._forms(inner, args[0], sources, own)
            if made is not None:
                return made
            shape = operation.call.reads[0].shape
            if is_norm_elsewhere(inner, shape):
                return as_rescaling(inner, len(shape), self.unique(operation.name))(args[0])
        return self.rebuilder.of(inner)(*args, **kwargs)

    def _weights(self, operation: Operation) -> tuple[np.ndarray, np.ndarray | None] | None:
        """Kernel, on its grid, and bias of a quantized layer; with its batch normalization."""
        wrapper = operation.layer
        if not isinstance(wrapper, QuantizedLayer) or not wrapper._weight_vars:
            return None
        inner = wrapper.layer
        ((weight, quantizer, variables),) = wrapper._weight_vars
        kernel = quantizer(weight, False, weights=variables).numpy()
        bias = inner.bias.numpy() if inner.use_bias else None
        if operation not in self._folds:
            return kernel, bias
        return folded(inner, kernel, bias, self._folds[operation].plain)

    def _limits(self, operation: Operation) -> np.ndarray:
        """The ends of the grids of a Dense layer's channels, its norm folded in; (), if one."""
        ((weight, quantizer, _),) = operation.layer._weight_vars
        ends = np.abs(weight.numpy()).max(0 if quantizer.axes else None)
        scale, _ = scale_and_offset(self._folds[operation].plain)
        if np.ndim(scale):
            scale = np.broadcast_to(scale, operation.layer.layer.units)
        return np.asarray(np.maximum(np.maximum(ends, SMALLEST) * np.abs(scale), SMALLEST))

    def _weighted(self, operation: Operation, inner: Any, x: Any, kernel: Any, bias: Any) -> Any:
        is_folded = operation in self._folds
        if self.lite and is_folded and isinstance(inner, layers.Dense):
            # A Dense layer has one scale; with the batch normalization it needs one a channel.
            limits, form = self._limits(operation), self._forms.dense_as_convolution
            made = form(inner, x, kernel, bias, limits) if limits.ndim else None
            if made is not None:
                return made
        if id(operation.layer) not in self._layers:
            name = self.unique(operation.name)
            self._layers[id(operation.layer)] = with_weights(inner, name, kernel, bias)
        return self._layers[id(operation.layer)](x)

    def _grid(self, x: Any, range_: Range, name: str) -> Any:
        """`x` rounded to a range."""
        layer = FixedQuantize(
            *range_,
            narrow_range=self.symmetric,
            emit="fake_quant" if self.lite else "quantize_dequantize",
            name=self.unique(name),
        )
        made = layer(x)
        self._grids[id(made)] = made, range_
        return made

    def _settled(self, end: Operation, operation: Operation, made: Any, range_: Range) -> Any:
        """Puts a kernel between a range that TFLite dictates and another that is wanted.

        A sigmoid ends in [0, 1], an average pooling on the grid of its input. The
        converter changes the scale of such a tensor once, but not for a
        concatenation again.

        Args:
            end: the call whose readers read the result.
            operation: the call that computes.
            made: its new tensor.
            range_: that is wanted.
        """
        inner = operation.plain
        # Between the transpositions of a pooling whose channels come first the converter
        # takes the one range for the other.
        first = type(inner) in _AVERAGES and inner.data_format == "channels_first"
        if not self.lite or not (first or _feeds_one_grid(end)):
            return made
        dictated = operation.kind.fixed
        if type(inner) in _AVERAGES and not isinstance(made.node.layer, layers.DepthwiseConv2D):
            dictated = self._range_of(made.node.keras_inputs[0])
        if dictated in (None, range_):
            return made
        made = FixedQuantize(*dictated, name=self.unique(f"{operation.name}_dictated"))(made)
        one, zero = np.asarray(1.0), np.asarray(0.0)
        same = self._forms.scaled(made, one, zero, f"{operation.name}_rescaled")
        return made if same is None else same

    def _moved(self, operation: Operation, made: Any, args: Any) -> Any:
        """What only moves numbers keeps their grid; TensorRT wants to see it at each reader."""
        sources = [self._range_of(tensor) for tensor in tf.nest.flatten(args)]
        range_ = sources[0] if len(sources) == 1 else None
        if range_ is None:
            return made
        if not self.lite and len(operation.call.outputs) == 1 and _reads_integers(operation):
            return self._grid(made, range_, f"{operation.name}_range")
        for tensor in tf.nest.flatten(made):
            self._grids[id(tensor)] = tensor, range_
        return made

    def _range_of(self, tensor: Any) -> Range | None:
        found = self._grids.get(id(tensor))
        return None if found is None else found[1]

    def _reader_range(self, operation: Operation) -> Range | None:
        """The range of the `QuantizedTensor` behind a call that no wrapper holds."""
        reader = operation.only_reader
        tensor = reader is not None and isinstance(reader.layer, QuantizedTensor)
        return self._ranges.get(reader.name) if tensor and reader else None


def _folds(operations: Iterable[Operation]) -> dict[Operation, Operation]:
    """Quantized layer → the batch normalization that it takes in."""
    found = {}
    for operation in operations:
        reader = operation.only_reader
        wrapper = operation.layer
        if reader is None or operation.shared or reader.shared:
            continue
        if not isinstance(wrapper, QuantizedLayer) or not wrapper._weight_vars:
            continue
        linear = wrapper.layer.activation in (None, keras.activations.linear)
        plain = linear and not wrapper.quantize_config.output_quantizer
        if plain and reader.kind.role == layer_roles.NORM:
            found[operation] = reader
    return found


def _reads_integers(operation: Operation) -> bool:
    """True if a reader of this call is one that TensorRT feeds with 8 bits."""
    roles = (layer_roles.WEIGHTED, layer_roles.POOL, layer_roles.SUM)
    return any(reader.kind.role in roles for reader in operation.readers)


def _feeds_one_grid(operation: Operation) -> bool:
    """True if what reads this call wants all that it reads, and its result, on one grid."""
    kinds_of_one = (layers.Maximum, layers.Minimum)
    for reader in operation.readers:
        inner = reader.plain
        role = reader.kind.role
        if role == layer_roles.CONCAT or type(inner) in kinds_of_one:
            return True
        moves = role == layer_roles.SAME or isinstance(inner, QuantizedTensor)
        if moves and _feeds_one_grid(reader):
            return True
    return False
