"""Models of images: blocks of known networks, odd convolutions, heads of detectors."""

from __future__ import annotations

import tensorflow as tf
import tf_keras as keras

from sweep_models.base import model
from sweep_models.sequences import stack

L = keras.layers


def unit(y, filters, size=3, activation="relu", **kwargs):
    """Convolution, batch normalization, activation."""
    y = L.Conv2D(filters, size, padding="same", use_bias=False, **kwargs)(y)
    return L.Activation(activation)(L.BatchNormalization()(y))


def classifier(x, y, classes=3):
    return keras.Model(x, L.Dense(classes)(L.GlobalAveragePooling2D()(y)))


@model("images")
def residual():
    x = keras.Input((8, 8, 3))
    y = unit(x, 6)
    return classifier(x, L.Add()([y, unit(unit(y, 4), 6)]))


@model("images")
def preactivated():
    x = keras.Input((8, 8, 3))
    y = L.Conv2D(6, 3, padding="same")(x)
    z = L.Conv2D(6, 3, padding="same")(L.ReLU()(L.BatchNormalization()(y)))
    return classifier(x, L.ReLU()(L.BatchNormalization()(L.Add()([y, z]))))


@model("images")
def inverted_residual():
    x = keras.Input((8, 8, 4))
    y = unit(x, 12, 1, tf.nn.relu6)
    y = L.ReLU(6.0)(L.BatchNormalization()(L.DepthwiseConv2D(3, padding="same")(y)))
    return classifier(x, x + L.BatchNormalization()(L.Conv2D(4, 1)(y)))


@model("images")
def squeeze_excite():
    x = keras.Input((8, 8, 3))
    y = unit(x, 8, activation="swish")
    gate = L.Dense(8, "hard_sigmoid")(
        L.Dense(2, "relu")(L.GlobalAveragePooling2D(keepdims=True)(y))
    )
    return classifier(x, y * gate)


@model("images")
def dense_block():
    x = keras.Input((8, 8, 3))
    y = L.Conv2D(4, 3, padding="same")(x)
    for _ in range(3):
        y = L.Concatenate()([y, unit(y, 3)])
    return classifier(x, y)


@model("images")
def inception():
    x = keras.Input((8, 8, 3))
    pooled = unit(L.AveragePooling2D(3, 1, "same")(x), 3, 1)
    return classifier(x, L.Concatenate()([unit(x, 4, 1), unit(x, 4, (1, 3)), pooled]))


@model("images")
def channel_shuffle():
    x = keras.Input((8, 8, 3))
    y = unit(x, 8)
    left, right = tf.split(y, 2, -1)
    y = tf.concat([left, unit(right, 4)], -1)
    y = tf.transpose(tf.reshape(y, (-1, 8, 8, 2, 4)), (0, 1, 2, 4, 3))
    return classifier(x, unit(tf.reshape(y, (-1, 8, 8, 8)), 6, 1))


@model("images")
def grouped():
    return stack((8, 8, 4), L.Conv2D(8, 3, groups=4), L.ReLU(), L.GlobalMaxPooling2D(), L.Dense(3))


@model("images")
def convnext():
    x = keras.Input((8, 8, 4))
    y = L.LayerNormalization(epsilon=1e-6)(L.DepthwiseConv2D(7, padding="same")(x))
    return classifier(x, x + L.Dense(4)(L.Dense(8, "gelu")(y)))


@model("images", heads="softmax")
def lenet_tanh():
    layers = [L.Conv2D(4, 5, activation="tanh"), L.AveragePooling2D(), L.Flatten()]
    return stack((12, 12, 1), *layers, L.Dense(8, "tanh"), L.Dense(4, "softmax"))


@model("images", heads="softmax")
def vgg_like():
    layers = [L.Conv2D(4, 3, activation="relu"), L.MaxPooling2D(), L.Flatten(), L.Dropout(0.5)]
    return stack((8, 8, 3), *layers, L.Dense(6, "relu"), L.Dense(3), L.Softmax())


@model("images")
def fully_convolutional_open():
    return stack(
        (None, None, 3), L.Conv2D(4, 3, activation="relu"), L.GlobalAveragePooling2D(), L.Dense(3)
    )


@model("images", heads="sigmoid", size=16)
def unet_open():
    x = keras.Input((None, None, 3))
    a = unit(x, 4)
    b = unit(L.MaxPooling2D()(a), 6)
    y = L.Conv2DTranspose(4, 2, 2)(b)
    return keras.Model(x, L.Conv2D(2, 1, activation="sigmoid")(unit(L.Concatenate()([a, y]), 4)))


@model("images", heads="values", size=8)
def super_resolution():
    x = keras.Input((None, None, 1))
    y = L.Conv2D(4, 3, padding="same")(unit(x, 6))
    return keras.Model(x, tf.nn.depth_to_space(y, 2))


@model("images", heads="values")
def autoencoder():
    down = [L.Conv2D(4, 3, 2, "same", activation="relu"), L.Flatten(), L.Dense(5, name="code")]
    up = [L.Dense(64, "relu"), L.Reshape((4, 4, 4)), L.UpSampling2D(interpolation="bilinear")]
    return stack((8, 8, 1), *down, *up, L.Conv2D(1, 3, padding="same", activation="tanh"))


@model("images", heads="values")
def generator():
    up = L.Conv2DTranspose(4, 4, 2, "same", use_bias=False)
    layers = [L.Dense(32), L.Reshape((4, 4, 2)), up, L.BatchNormalization(), L.LeakyReLU(0.2)]
    return stack((5,), *layers, L.Conv2DTranspose(1, 3, padding="same", activation="tanh"))


@model("images")
def dilated():
    x = keras.Input((16, 16, 3))
    branches = [unit(x, 3, dilation_rate=rate) for rate in (1, 2, 4)]
    return classifier(x, L.Concatenate()(branches))


@model("images")
def group_norm():
    x = keras.Input((8, 8, 3))
    y = L.GroupNormalization(2)(L.Conv2D(8, 3)(x))
    return classifier(x, L.ReLU()(y))


@model("images")
def instance_norm():
    x = keras.Input((8, 8, 3))
    y = L.GroupNormalization(-1)(L.Conv2D(6, 3)(x))
    return classifier(x, L.PReLU(shared_axes=[1, 2])(y))


@model("images")
def unit_norm():
    x = keras.Input((8, 8, 3))
    y = L.UnitNormalization()(L.GlobalAveragePooling2D()(L.Conv2D(6, 3)(x)))
    return keras.Model(x, L.Dense(3)(y))


@model("images")
def batch_norm_first_axis():
    return stack((4, 6, 6), L.BatchNormalization(axis=1), L.Conv2D(4, 3), L.Flatten(), L.Dense(3))


@model("images")
def padding_and_cropping():
    layers = [L.ZeroPadding2D(((0, 1), (2, 0))), L.Conv2D(4, 3, 2), L.Cropping2D(1), L.ReLU()]
    return stack((10, 10, 2), *layers, L.Flatten(), L.Dense(3))


@model("images")
def locally_connected():
    return stack((6, 6, 2), L.LocallyConnected2D(3, 3), L.ReLU(), L.Flatten(), L.Dense(3))


@model("images")
def separable():
    return stack(
        (8, 8, 3), L.SeparableConv2D(6, 3, depth_multiplier=2), L.ReLU(), L.Flatten(), L.Dense(3)
    )


@model("images")
def volumes():
    return stack(
        (6, 6, 6, 1), L.Conv3D(4, 3, activation="relu"), L.GlobalAveragePooling3D(), L.Dense(3)
    )


@model("images", heads="values")
def volumes_transposed():
    return stack((4, 4, 4, 2), L.Conv3DTranspose(3, 2, 2, activation="relu"), L.Conv3D(1, 3))


@model("images")
def augmented():
    layers = [L.RandomFlip(), L.RandomRotation(0.1), L.RandomZoom(0.1), L.Rescaling(1 / 2, 0.5)]
    return stack((8, 8, 3), *layers, L.Conv2D(4, 3, activation="relu"), L.Flatten(), L.Dense(3))


@model("images")
def random_crop():
    return stack((8, 8, 3), L.RandomCrop(6, 6), L.Conv2D(4, 3), L.Flatten(), L.Dense(3))


@model("images")
def resized_and_rescaled():
    layers = [L.Resizing(6, 6), L.Rescaling(1 / 127.5, -1), L.Conv2D(4, 3), L.ReLU()]
    return stack((9, 9, 3), *layers, L.GlobalAveragePooling2D(), L.Dense(3))


@model("images", high=256)
def bytes_in():
    layers = [L.Rescaling(1 / 255), L.Conv2D(4, 3, activation="relu"), L.Flatten(), L.Dense(3)]
    return stack((8, 8, 3), *layers, dtype="uint8")


@model("images", heads="values")
def ssd_heads():
    x = keras.Input((16, 16, 3))
    first = unit(x, 6, strides=2)
    maps = [first, unit(first, 8, strides=2)]
    boxes = [L.Reshape((-1, 4))(L.Conv2D(8, 3, padding="same")(one)) for one in maps]
    scores = [L.Reshape((-1, 3))(L.Conv2D(6, 3, padding="same")(one)) for one in maps]
    outputs = {"boxes": L.Concatenate(1)(boxes), "scores": L.Concatenate(1)(scores)}
    return keras.Model(x, outputs)


@model("images", heads="values")
def yolo_decoded():
    x = keras.Input((8, 8, 3))
    y = L.Reshape((4, 4, 2, 7))(L.Conv2D(14, 1)(unit(x, 6, strides=2)))
    xy, wh, rest = tf.sigmoid(y[..., :2]), tf.exp(y[..., 2:4]), tf.sigmoid(y[..., 4:])
    return keras.Model(x, tf.concat([xy, wh, rest], -1))


@model("images", heads=["sigmoid", "values"], size=16)
def centre_net_open():
    x = keras.Input((None, None, 3))
    y = unit(x, 6, strides=2)
    heat = L.Conv2D(2, 1, activation="sigmoid", name="heat")(y)
    return keras.Model(x, [heat, L.Conv2D(4, 1, name="box")(y)])


@model("images")
def feature_pyramid():
    x = keras.Input((16, 16, 3))
    low = unit(x, 6, strides=2)
    high = unit(low, 8, strides=2)
    merged = L.Conv2D(4, 1)(low) + L.UpSampling2D()(L.Conv2D(4, 1)(high))
    return keras.Model(x, L.Conv2D(3, 3, padding="same")(merged))


@model("images", heads="values")
def keypoints_soft_argmax():
    x = keras.Input((8, 8, 1))
    scores = L.Reshape((64, 2))(L.Rescaling(8.0)(L.Conv2D(2, 3, padding="same")(x)))
    heat = L.Softmax(axis=1)(scores)
    grid = tf.constant([[i // 8, i % 8] for i in range(64)], "float32")
    return keras.Model(x, tf.einsum("bkp,kc->bpc", heat, grid))


@model("images")
def channels_first_by_permute():
    layers = [L.Permute((2, 3, 1)), L.Conv2D(4, 3, activation="relu"), L.Flatten(), L.Dense(3)]
    return stack((3, 8, 8), *layers)


@model("images")
def maxout():
    x = keras.Input((8, 8, 3))
    return classifier(x, L.Maximum()([L.Conv2D(4, 3)(x), L.Conv2D(4, 3)(x)]))


@model("images")
def activations_of_many_kinds():
    x = keras.Input((8, 8, 3))
    kinds = ("elu", "selu", "softplus", "softsign", "exponential", "mish", "hard_sigmoid")
    return classifier(x, L.Concatenate()([L.Conv2D(2, 3, activation=kind)(x) for kind in kinds]))


@model("images", size=64)
def mobilenet_v2_open():
    base = keras.applications.MobileNetV2(
        input_shape=(None, None, 3), alpha=0.35, include_top=False, weights=None
    )
    return keras.Model(base.input, L.Dense(3)(L.GlobalAveragePooling2D()(base.output)))
