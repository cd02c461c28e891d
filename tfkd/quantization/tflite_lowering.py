"""Layers written so that TFLite's converter finds an integer operation for each part.

The converter computes in integers what lies between two ranges, one operation
at a time. A layer that becomes several operations (a mean of two tensors: an
addition and a multiplication) would stay float, as the tensors inside have no
range. Here such layers are taken apart, with a range on each part: one that
loses nothing wherever there is one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from tfkd.networks.batch_norm import is_per_channel, scale_and_offset
from tfkd.quantization.deployed_layers import LimitedConv2D, Weighted
from tfkd.quantization.fixed_fake_quant import FixedQuantize
from tfkd.quantization.flattening.hard_swish import HardSigmoid

layers = keras.layers
Range = tuple[float, float]


class LiteForms:
    """Calls layers in their integer forms.

    Args:
        unique: a name → the same or a similar name that is free.
        narrow: leave out the lowest code of each range, as symmetric ranges do.
    """

    def __init__(self, unique: Callable[[str], str], narrow: bool):
        self._unique, self._narrow = unique, narrow

    def __call__(
        self, layer: Any, inputs: Any, sources: Sequence[Range | None], out: Range | None
    ) -> Any:
        """The output of `layer`; None if it needs no form of its own.

        Args:
            layer: a plain layer.
            inputs: its argument, a tensor or a list of tensors.
            sources: the range of each of them; None for a tensor on no grid.
            out: that of the output, which the caller applies.
        """
        ranges = [source for source in sources if source is not None]
        if not ranges or len(ranges) < len(sources):
            return None
        kind, name = type(layer), layer.name
        if tf.is_tensor(inputs) and is_per_channel(layer, inputs.shape):
            return self.scaled(inputs, *scale_and_offset(layer), name)
        if out is None:
            return None
        if kind in _CHAINS and len(ranges) > 2:
            return self._chain(kind, inputs, ranges, out, name)
        if kind is layers.Average:
            return self._average(inputs, ranges, out, name)
        slope = _hard_slope(layer)
        # The range ends at 1 at the latest, so that rounding clips as relu6 would.
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

    def scaled(self, x: Any, scale: np.ndarray, offset: np.ndarray, name: str) -> Any:
        """scale·x + offset as a 1×1 depthwise convolution.

        Its weight of a channel is one number, for which 8 bits with a scale of
        its own are exact, and its bias has 32 bits. None if `x` has no fixed
        number of channels, or several open sizes.
        """
        shape = [-1 if size is None else size for size in x.shape[1:]]
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
        self, dense: Any, x: Any, kernel: np.ndarray, bias: np.ndarray, limits: np.ndarray
    ) -> Any:
        """A Dense layer as a 1×1 convolution, which has a scale for each output channel.

        Args:
            dense: the layer.
            x: what it reads, (B, ..., C).
            kernel, bias: its weights.
            limits: (units,), the end of the grid of each channel of the kernel.
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

    def on_grid(self, x: Any, range_: Range, name: str) -> Any:
        """`x` rounded to a range."""
        name = self._unique(f"{name}_range")
        return FixedQuantize(*range_, narrow_range=self._narrow, name=name)(x)

    def _chain(
        self, kind: type, tensors: Sequence[Any], ranges: Sequence[Range], out: Range, name: str
    ) -> Any:
        """An operation on many tensors as operations on two."""
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
        self, tensors: Sequence[Any], ranges: Sequence[Range], out: Range, name: str
    ) -> Any:
        """A sum, then a multiplication that changes the scale and no integer."""
        count = len(tensors)
        times = (out[0] * count, out[1] * count)
        total = self._chain(layers.Add, tensors, ranges, times, f"{name}_sum")
        total = self.on_grid(total, times, f"{name}_sum")
        return layers.Rescaling(1.0 / count, name=self._unique(name))(total)

    def _relu(self, layer: Any, x: Any, out: Range) -> Any:
        """A ReLU with a limit or a slope."""
        if layer.threshold:
            return None
        if layer.negative_slope and layer.max_value is None:
            return layers.LeakyReLU(float(layer.negative_slope), name=self._unique(layer.name))(x)
        limited = layer.max_value not in (None, 6.0) and not layer.negative_slope
        # The range ends at the limit at the latest: rounding clips as the limit would.
        if limited and out[1] <= float(layer.max_value) * (1 + 1e-6):
            return layers.ReLU(name=self._unique(layer.name))(x)
        return None

    def _average_pool(self, layer: Any, x: Any) -> Any:
        """A mean over windows as a depthwise convolution.

        TFLite's own kernel rounds to the grid of its input first. Not with windows
        that reach over the border: they have fewer numbers.
        """
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

    def _elu(self, layer: Any, x: Any, source: Range, out: Range) -> Any:
        """relu(x) + α·(exp(min(x, 0)) − 1)."""
        name = layer.name
        alpha = float(getattr(layer, "alpha", 1.0))
        if source[0] >= 0 or out[1] <= 0:
            return None
        # −relu(−x), since a minimum with 0 would want 0 as a tensor.
        low = (source[0], -source[0]) if self._narrow else (source[0], 0.0)
        mirrored = self.scaled(x, np.asarray(-1.0), np.asarray(0.0), f"{name}_mirrored")
        if mirrored is None:
            return None
        size = (-low[1], -low[0])
        mirrored = layers.ReLU(name=self._unique(f"{name}_negative"))(mirrored)
        mirrored = self.on_grid(mirrored, size, f"{name}_negative")
        negative = self.scaled(mirrored, np.asarray(-1.0), np.asarray(0.0), f"{name}_again")
        negative = self.on_grid(negative, low, f"{name}_again")
        power = layers.Activation("exponential", name=self._unique(f"{name}_exp"))(negative)
        one = (-1.0, 1.0) if self._narrow else (0.0, 1.0)
        power = self.on_grid(power, one, f"{name}_exp")
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


# How the range of a partial result follows from those of its parts.
_CHAINS: dict[type, Callable[[Range, Range, Range], Range]] = {
    layers.Add: _sum,
    layers.Multiply: _product,
    layers.Maximum: _same,
    layers.Minimum: _same,
}


def _hard_slope(layer: Any) -> float:
    """a of min(max(a·x + ½, 0), 1); 0 for all other layers."""
    if type(layer) is HardSigmoid:
        return 1 / 6
    name = layer.activation if type(layer) is layers.Activation else None
    return 0.2 if name is keras.activations.hard_sigmoid else 0.0


def _is_elu(layer: Any) -> bool:
    if type(layer) is layers.ELU:
        return np.ndim(layer.alpha) == 0
    return type(layer) is layers.Activation and layer.activation is keras.activations.elu
