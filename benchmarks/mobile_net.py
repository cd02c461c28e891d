"""A small network of MobileNetV3's layers for images of 32×32: 88 k parameters, 2.5 M MACs.

Inverted residual blocks with depthwise convolutions (Howard et al. 2019, "Searching for
MobileNetV3", https://arxiv.org/abs/1905.02244): ReLU6 at first; hard swish and gates of
squeeze-excite (with hard sigmoids) in the later blocks.
"""

from __future__ import annotations

from typing import Any

import tf_keras as keras
from tf_keras import layers

# Filters, stride, and whether the block has hard swish and a gate.
BLOCKS = (
    (16, 1, False),
    (24, 2, False),
    (24, 1, False),
    (40, 2, True),
    (40, 1, True),
    (64, 1, True),
)
EXPANSION, HEAD, SQUEEZE = 4, 192, 8


def build(classes: int = 10) -> Any:
    """The network, which returns logits (B, classes) of images (B, 32, 32, 3)."""
    inputs = keras.Input((32, 32, 3))
    x = _convolution(inputs, 16, 3, "stem", 2, _relu6)
    for n, (filters, stride, late) in enumerate(BLOCKS, 1):
        x = _block(x, filters, stride, f"block{n}", late)
    x = _convolution(x, HEAD, 1, "head", 1, _hard_swish)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(inputs, layers.Dense(classes, name="logits")(x), name="mobile")


def _block(x: Any, filters: int, stride: int, name: str, late: bool) -> Any:
    wide, activation = EXPANSION * x.shape[-1], _hard_swish if late else _relu6
    y = _convolution(x, wide, 1, f"{name}_expand", 1, activation)
    y = _convolution(y, None, 3, f"{name}_depthwise", stride, activation)
    if late:
        gate = layers.GlobalAveragePooling2D(keepdims=True, name=f"{name}_squeeze")(y)
        gate = layers.Conv2D(wide // SQUEEZE, 1, activation="relu", name=f"{name}_reduce")(gate)
        gate = _hard_sigmoid(layers.Conv2D(wide, 1, name=f"{name}_excite")(gate), name)
        y = layers.Multiply(name=f"{name}_gate")([y, gate])
    y = _convolution(y, filters, 1, f"{name}_project")
    return layers.Add(name=f"{name}_add")([x, y]) if y.shape == x.shape else y


def _convolution(x, filters, size, name, stride=1, activation=None):
    """Convolution, depthwise where `filters` is None, batch normalization, activation."""
    common = {"padding": "same", "use_bias": False, "name": name}
    if filters is None:
        x = layers.DepthwiseConv2D(size, stride, **common)(x)
    else:
        x = layers.Conv2D(filters, size, stride, kernel_initializer="he_normal", **common)(x)
    # Few steps: statistics with Keras's momentum of 0.99 would lag behind.
    x = layers.BatchNormalization(momentum=0.9, name=f"{name}_norm")(x)
    return activation(x, name) if activation else x


def _relu6(x: Any, name: str) -> Any:
    return layers.ReLU(6.0, name=f"{name}_relu6")(x)


def _hard_sigmoid(x: Any, name: str) -> Any:
    """ReLU6(x + 3) / 6, as `tf_keras.applications.MobileNetV3Small` writes it."""
    return layers.ReLU(6.0, name=f"{name}_hard")(x + 3.0) * (1.0 / 6.0)


def _hard_swish(x: Any, name: str) -> Any:
    return layers.Multiply(name=f"{name}_swish")([x, _hard_sigmoid(x, f"{name}_swish")])
