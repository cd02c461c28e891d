"""Decomposes composite layers: separable convolutions, activations inside layers, attention.

The intermediate tensors of such a layer, between the two steps of a separable convolution or
between a convolution and its swish, are int8 as well, so they need their own ranges and
therefore separate layers. ReLU and ReLU6 stay inside the layer: every int8 kernel clips its
output anyway.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf
import tf_keras as keras

from tfkd.keras_internals import CustomScaleLayer
from tfkd.networks.copy_layer import copy_layer
from tfkd.networks.layer_parts import calls_anywhere, keras_layers
from tfkd.networks.rebuild import Parts
from tfkd.quantization.flattening.attention import split_attention

layers = keras.layers
FUSED = (None, keras.activations.linear, keras.activations.relu, tf.nn.relu, tf.nn.relu6)
# Exact classes: a subclass may interpret its arguments differently.
SEPARABLE = {
    layers.SeparableConv1D: (layers.DepthwiseConv1D, layers.Conv1D),
    layers.SeparableConv2D: (layers.DepthwiseConv2D, layers.Conv2D),
}
ACTIVATED = keras_layers(
    "Dense Conv1D Conv2D Conv3D DepthwiseConv1D DepthwiseConv2D Conv1DTranspose Conv2DTranspose "
    "Conv3DTranspose"
)


class Splitter:
    """Decomposes layers.

    Args:
        unique: name → that name or a similar one that is not taken.
    """

    def __init__(self, unique: Callable[[str], str]) -> None:
        self._unique = unique
        self._activations: dict[int, keras.layers.Layer] = {}

    def __call__(self, layer: keras.layers.Layer, name: str) -> Parts | None:
        """The unbuilt layers that replace `layer`; None: it is not decomposed.

        Calling the result computes what `layer` does. The weights of the parts are those
        of `layer`, in the same order (for attention, in other shapes).
        """
        kind = type(layer)
        if kind in SEPARABLE and layer.padding != "causal":
            first = self._depthwise(layer, name)
            changes = _pointwise_config(layer)
            if layer.activation in FUSED:
                changes["activation"] = layer.activation
                return Parts([first, SEPARABLE[kind][1](name=name, **changes)])
            changes["activity_regularizer"] = None
            second = SEPARABLE[kind][1](name=name, **changes)
            return Parts([first, second, self._activation(layer, name)])
        if kind in ACTIVATED and layer.activation not in FUSED:
            plain = copy_layer(layer, name, activation="linear", activity_regularizer=None)
            return Parts([plain, self._activation(layer, name)])
        if kind is CustomScaleLayer and _adds_alike(layer):
            factor = layers.Rescaling(
                layer.scale, name=self._unique(f"{name}_scaled"), dtype=layer.dtype
            )
            return _ScaledSum([factor, layers.Add(name=name, dtype=layer.dtype)])
        return split_attention(layer, name, self._unique)

    def _depthwise(self, layer: keras.layers.Layer, name: str) -> keras.layers.Layer:
        """The depthwise step of a separable convolution."""
        names = "padding depth_multiplier data_format dtype depthwise_regularizer".split()
        config = {key: getattr(layer, key) for key in (*names, "depthwise_constraint")}
        for key in ("kernel_size", "strides", "dilation_rate"):
            size = getattr(layer, key)
            config[key] = size if layer.rank > 1 else size[0]
        config["depthwise_initializer"] = _again(layer.depthwise_initializer)
        name = self._unique(f"{name}_depthwise")
        return SEPARABLE[type(layer)][0](use_bias=False, name=name, **config)

    def _activation(self, layer: keras.layers.Layer, name: str) -> keras.layers.Layer:
        """The activation of a layer as a layer; an activation layer stays shared."""
        activation = layer.activation
        if isinstance(activation, layers.Layer):
            if id(activation) not in self._activations:
                own = self._unique(f"{name}_{activation.name}")
                self._activations[id(activation)] = copy_layer(activation, own)
            return self._activations[id(activation)]
        word = getattr(activation, "__name__", "")
        word = word if re.fullmatch(r"\w+", word) else "activation"
        return layers.Activation(
            activation,
            name=self._unique(f"{name}_{word}"),
            dtype=layer.dtype,
            activity_regularizer=layer.activity_regularizer,
        )


class _ScaledSum(Parts):
    """x + s·y of Inception-ResNet, as a Rescaling and an Add."""

    def __call__(self, inputs: Sequence[tf.Tensor], **kwargs: Any) -> tf.Tensor:
        """[x, y] → x + s·y."""
        del kwargs  # The layer's own `call` takes none.
        factor, add = self
        return add([inputs[0], factor(inputs[1])])


def _adds_alike(layer: keras.layers.Layer) -> bool:
    """Whether an Add can replace the sum in a layer: two tensors of equal rank."""
    calls = [node.keras_inputs for node in calls_anywhere(layer)]
    alike = all(len(x) == 2 and x[0].shape.rank == x[1].shape.rank for x in calls)
    return alike and layer.activity_regularizer is None


def _pointwise_config(layer: keras.layers.Layer) -> dict[str, Any]:
    """Arguments of the pointwise step of a separable convolution, a 1×1 convolution."""
    names = (
        "filters data_format use_bias bias_regularizer bias_constraint activity_regularizer dtype"
    )
    return {
        **{name: getattr(layer, name) for name in names.split()},
        "kernel_size": 1,
        "kernel_initializer": _again(layer.pointwise_initializer),
        "kernel_regularizer": layer.pointwise_regularizer,
        "kernel_constraint": layer.pointwise_constraint,
        "bias_initializer": _again(layer.bias_initializer),
    }


def _again(initializer: keras.initializers.Initializer) -> keras.initializers.Initializer:
    """A copy of an initializer: Keras warns if an unseeded one is used twice."""
    return type(initializer).from_config(initializer.get_config())
