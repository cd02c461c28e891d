"""Lowering to TFLite: rewrites layers as sequences of operations with int8 kernels.

The converter computes an operation in integers if its inputs and its output have ranges. A
layer that becomes several operations (the mean of two tensors: an addition and a
multiplication) would stay float, since its intermediate tensors have no range. Such layers
are decomposed here, with a range on each intermediate tensor, lossless where possible.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import tf_keras as keras

from tfkd.keras_internals import KerasTensor
from tfkd.networks.batch_norm import is_per_channel, scale_and_offset
from tfkd.quantization.deployed_layers import LimitedConv2D, Weighted
from tfkd.quantization.fixed_fake_quant import FixedQuantize
from tfkd.quantization.flattening.hard_swish import HardSigmoid

layers = keras.layers
Range = tuple[float, float]


class LiteForms:
    """Builds the int8 forms of layers.

    Args:
        unique: name → that name or a similar one that is not taken.
        narrow: use ranges without the lowest code, as symmetric ranges do.
    """

    def __init__(self, unique: Callable[[str], str], narrow: bool):
        self._unique, self._narrow = unique, narrow

    def __call__(
        self,
        layer: keras.layers.Layer,
        inputs: KerasTensor | Sequence[KerasTensor],
        sources: Sequence[Range | None],
        out: Range | None,
    ) -> KerasTensor | None:
        """The output of `layer` in its int8 form; None if the layer needs no other form.

        Args:
            layer: a layer without a wrapper.
            inputs: its argument, a tensor or a list of tensors.
            sources: the range of each input; None for a tensor that is not quantized.
            out: the range of the output, which the caller applies.
        """
        ranges = [source for source in sources if source is not None]
        if not ranges or len(ranges) < len(sources):
            return None
        kind, name = type(layer), layer.name
        if not isinstance(inputs, Sequence) and is_per_channel(layer, inputs.shape):
            return self.scaled(inputs, *scale_and_offset(layer), name)
        if out is None:
            return None
        if kind in _CHAINS and len(ranges) > 2:
            return self._chain(kind, inputs, ranges, out, name)
        if kind is layers.Average:
            return self._average(inputs, ranges, out, name)
        slope = _hard_slope(layer)
        # If the range ends at 1, quantization clips there, and a plain ReLU is sufficient.
        if slope and out[1] <= 1.0 + 1e-6:
            linear = self.scaled(inputs, np.asarray(slope), np.asarray(0.5), f"{name}_linear")
            return None if linear is None else layers.ReLU(name=self._unique(name))(linear)
        if kind is layers.ReLU:
            return self._relu(layer, inputs, out)
        if kind is layers.AveragePooling2D:
            return self._average_pool(layer, inputs)
        if _is_elu(layer):
            return self._elu(layer, inputs, ranges[0], out)
        return None

    def scaled(
        self, x: KerasTensor, scale: np.ndarray, offset: np.ndarray, name: str
    ) -> KerasTensor | None:
        """scale·x + offset as a 1×1 depthwise convolution.

        It has one weight per channel, which per-channel int8 represents exactly (code ±127),
        and a 32-bit bias. Returns None if the number of channels of `x` is unknown, or
        several other sizes are.
        """
        shape = [-1 if size is None else size for size in x.shape[1:]]
        # A Reshape can infer only one size; images need no Reshape.
        if not shape or shape[-1] < 1 or shape.count(-1) > (1 if len(shape) != 3 else 2):
            return None
        kernel = np.broadcast_to(scale, shape[-1]).astype(np.float32).reshape(1, 1, -1, 1)
        bias = np.broadcast_to(offset, shape[-1]).astype(np.float32)
        layer = layers.DepthwiseConv2D(1, name=self._unique(name))
        if len(shape) == 3:
            return Weighted(layer, kernel, bias)(x)
        image = (int(np.prod(shape[:-1])) if -1 not in shape else -1, 1, shape[-1])
        x = layers.Reshape(image, name=self._unique(f"{name}_image"))(x)
        x = Weighted(layer, kernel, bias)(x)
        return layers.Reshape(shape, name=self._unique(f"{name}_back"))(x)

    def dense_as_convolution(
        self,
        dense: keras.layers.Dense,
        x: KerasTensor,
        kernel: np.ndarray,
        bias: np.ndarray,
        limits: np.ndarray,
    ) -> KerasTensor | None:
        """A Dense layer as a 1×1 convolution, which TFLite quantizes per channel.

        Args:
            dense: the layer.
            x: its input, (B, ..., C).
            kernel, bias: its weights.
            limits: upper end of the range of each output channel of the kernel, (units,).
        """
        shape = [-1 if size is None else size for size in x.shape[1:]]
        is_image = len(shape) == 3
        if shape.count(-1) > 1 and not is_image:
            return None
        name = dense.name
        layer = LimitedConv2D(
            dense.units,
            1,
            limits=limits.tolist(),
            activation=dense.activation,
            name=self._unique(name),
        )
        convolution = Weighted(layer, np.reshape(kernel, (1, 1, *kernel.shape)), bias)
        if is_image:
            return convolution(x)
        image = (int(np.prod(shape[:-1])) if -1 not in shape else -1, 1, shape[-1])
        x = layers.Reshape(image, name=self._unique(f"{name}_image"))(x)
        back = [*shape[:-1], dense.units]
        return layers.Reshape(back, name=self._unique(f"{name}_back"))(convolution(x))

    def on_grid(self, x: KerasTensor, range_: Range, name: str) -> KerasTensor:
        """`x` quantized over a range."""
        name = self._unique(f"{name}_range")
        return FixedQuantize(*range_, narrow_range=self._narrow, name=name)(x)

    def _chain(
        self,
        kind: type,
        tensors: Sequence[KerasTensor],
        ranges: Sequence[Range],
        out: Range,
        name: str,
    ) -> KerasTensor:
        """An operation on many tensors as a chain of binary operations."""
        total, held = tensors[0], ranges[0]
        last = len(tensors) - 1
        for i in range(1, len(tensors)):
            own = self._unique(name if i == last else f"{name}_{i}")
            total = kind(name=own)([total, tensors[i]])
            if i < last:
                held = _CHAINS[kind](held, ranges[i], out)
                total = self.on_grid(total, held, f"{name}_{i}")
        return total

    def _average(
        self, tensors: Sequence[KerasTensor], ranges: Sequence[Range], out: Range, name: str
    ) -> KerasTensor:
        """A sum, then a multiplication that changes the scale but no integer code."""
        count = len(tensors)
        times = (out[0] * count, out[1] * count)
        total = self._chain(layers.Add, tensors, ranges, times, f"{name}_sum")
        total = self.on_grid(total, times, f"{name}_sum")
        return layers.Rescaling(1.0 / count, name=self._unique(name))(total)

    def _relu(self, layer: keras.layers.ReLU, x: KerasTensor, out: Range) -> KerasTensor | None:
        """A ReLU with a maximum or a negative slope."""
        if layer.threshold:
            return None
        if layer.negative_slope and layer.max_value is None:
            return layers.LeakyReLU(float(layer.negative_slope), name=self._unique(layer.name))(x)
        limited = layer.max_value not in (None, 6.0) and not layer.negative_slope
        # If the range ends at the maximum, quantization clips there.
        if limited and out[1] <= float(layer.max_value) * (1 + 1e-6):
            return layers.ReLU(name=self._unique(layer.name))(x)
        return None

    def _average_pool(
        self, layer: keras.layers.AveragePooling2D, x: KerasTensor
    ) -> KerasTensor | None:
        """Average pooling as a depthwise convolution.

        TFLite's pooling kernel reuses the scale of its input for the output. Only without
        padding: with it, windows at the border average over fewer elements.
        """
        # TensorFlow's depthwise convolution supports equal strides only.
        if layer.padding != "valid" or len(set(layer.strides)) > 1 or x.shape[-1] is None:
            return None
        if layer.data_format != "channels_last":
            return None
        shape = (*layer.pool_size, x.shape[-1], 1)
        kernel = np.full(shape, 1.0 / np.prod(layer.pool_size), np.float32)
        new = layers.DepthwiseConv2D(
            layer.pool_size, layer.strides, use_bias=False, name=self._unique(layer.name)
        )
        return Weighted(new, kernel, None)(x)

    def _elu(
        self, layer: keras.layers.Layer, x: KerasTensor, source: Range, out: Range
    ) -> KerasTensor | None:
        """relu(x) + α·(exp(min(x, 0)) − 1)."""
        name = layer.name
        alpha = float(getattr(layer, "alpha", 1.0))
        if source[0] >= 0 or out[1] <= 0:
            return None
        # min(x, 0) = −relu(−x): the minimum operation would need a constant tensor.
        low = (source[0], -source[0]) if self._narrow else (source[0], 0.0)
        mirrored = self.scaled(x, np.asarray(-1.0), np.asarray(0.0), f"{name}_mirrored")
        if mirrored is None:
            return None
        size = (-low[1], -low[0])
        mirrored = layers.ReLU(name=self._unique(f"{name}_negative"))(mirrored)
        mirrored = self.on_grid(mirrored, size, f"{name}_negative")
        negative = self.scaled(mirrored, np.asarray(-1.0), np.asarray(0.0), f"{name}_again")
        negative = self.on_grid(negative, low, f"{name}_again")
        # exp of values up to 0 is in (0, 1], and α·(exp − 1) in (−α, 0].
        power = layers.Activation("exponential", name=self._unique(f"{name}_exp"))(negative)
        power = self.on_grid(power, (-1.0, 1.0) if self._narrow else (0.0, 1.0), f"{name}_exp")
        power = self.scaled(power, np.asarray(alpha), np.asarray(-alpha), f"{name}_shifted")
        power = self.on_grid(power, (-alpha, alpha if self._narrow else 0.0), f"{name}_shifted")
        positive = layers.ReLU(name=self._unique(f"{name}_positive"))(x)
        ends = (-out[1] if self._narrow else 0.0, out[1])
        positive = self.on_grid(positive, ends, f"{name}_positive")
        return layers.Add(name=self._unique(name))([positive, power])


def _sum(a: Range, b: Range, out: Range) -> Range:
    return a[0] + b[0], a[1] + b[1]


def _product(a: Range, b: Range, out: Range) -> Range:
    corners = [x * y for x in a for y in b]
    return min(corners), max(corners)


def _same(a: Range, b: Range, out: Range) -> Range:
    return out


# Operation → range of a partial result, from the ranges of its operands.
_CHAINS: dict[type, Callable[[Range, Range, Range], Range]] = {
    layers.Add: _sum,
    layers.Multiply: _product,
    layers.Maximum: _same,
    layers.Minimum: _same,
}


def _hard_slope(layer: keras.layers.Layer) -> float:
    """The slope a of a hard sigmoid min(max(a·x + ½, 0), 1); 0 for all other layers."""
    if type(layer) is HardSigmoid:
        return 1 / 6
    name = layer.activation if type(layer) is layers.Activation else None
    return 0.2 if name is keras.activations.hard_sigmoid else 0.0


def _is_elu(layer: keras.layers.Layer) -> bool:
    if type(layer) is layers.ELU:
        return np.ndim(layer.alpha) == 0
    by_name = type(layer) is layers.Activation and layer.activation is keras.activations.elu
    return by_name or getattr(layer, "symbol", None) == "nn.elu"
