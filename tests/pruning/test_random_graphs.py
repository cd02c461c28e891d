"""Random models: whatever is cut out of them, the masked and the shrunk one agree.

`TFKD_RANDOM_GRAPHS=200` sets how many are tried; else the profile of hypothesis does.
"""

from __future__ import annotations

import os

import hypothesis
import tensorflow as tf
import tf_keras as keras
from hypothesis import strategies as st
from nets import assert_exact, sight

layers = keras.layers
COUNT = int(os.environ.get("TFKD_RANDOM_GRAPHS", hypothesis.settings().max_examples))
ACTIVATIONS = ("relu", "swish", "tanh", "sigmoid", "gelu", None)
FUNCTIONS = (
    tf.nn.relu,
    tf.nn.silu,
    lambda y: y * tf.sigmoid(y),
    lambda y: 0.5 * y,
    lambda y: y + 0.3,
    lambda y: y - tf.reduce_mean(y, [1, 2], keepdims=True),
    lambda y: tf.pad(y[:, 1:], [[0, 0], [1, 0], [0, 0], [0, 0]]),
    lambda y: tf.transpose(y, [0, 2, 1, 3]),
    lambda y: tf.concat([y, tf.nn.relu(-y)], -1),
    lambda y: y / (1.0 + tf.abs(y)),
    lambda y: tf.clip_by_value(y, -2.0, 2.0),
    lambda y: tf.nn.softmax(y),
)


class Builder:
    """Grows a model step by step; a step is a kind and a number that settles its details."""

    def __init__(self):
        self.x = keras.Input((5, 5, 3))
        self.pool = [layers.Conv2D(6, 3, padding="same", name="stem")(self.x)]
        self.shared, self.nested = [], []

    def pick(self, number, shape=None):
        """A tensor of the pool, the latest first; of a shape, if one is given."""
        found = [t for t in reversed(self.pool) if shape is None or tuple(t.shape[1:]) == shape]
        return found[number % len(found)]

    def conv(self, number):
        y = self.pick(number)
        filters, size = (4, 5, 6, 8)[number % 4], (1, 3)[number // 4 % 2]
        activation = ACTIVATIONS[number // 8 % 6]
        layer = layers.Conv2D(
            filters, size, padding="same", activation=activation, use_bias=number % 3 > 0
        )
        self.shared.append((layer, y.shape[-1]))
        return layer(y)

    def separable(self, number):
        return layers.SeparableConv2D(
            4 + number % 3, 3, padding="same", depth_multiplier=1 + number % 2
        )(self.pick(number))

    def depthwise(self, number):
        y = self.pick(number)
        if y.shape[-1] > 8:
            return y
        return layers.DepthwiseConv2D(3, padding="same", depth_multiplier=1 + number % 2)(y)

    def grouped(self, number):
        y = self.pick(number)
        channels = y.shape[-1]
        groups = next((g for g in (2, 3, 5, channels) if channels % g == 0), 1)
        groups = channels if number % 3 == 0 else groups
        return layers.Conv2D(groups * (1 + number % 2), 3, padding="same", groups=groups)(y)

    def norm(self, number):
        return layers.BatchNormalization(scale=number % 4 > 0, center=number % 5 > 0)(
            self.pick(number)
        )

    def activation(self, number):
        y = self.pick(number)
        if number % 7 == 6:
            return layers.PReLU(shared_axes=[1, 2])(y)
        return layers.Activation(ACTIVATIONS[number % 7])(y)

    def merge(self, number):
        y = self.pick(number)
        z = self.pick(number // 7 + 1, tuple(y.shape[1:]))
        kind = ("Add", "Multiply", "Subtract", "Maximum", "Average", "Minimum")[number % 6]
        return getattr(layers, kind)()([y, z])

    def residual(self, number):
        y = self.pick(number)
        z = layers.Conv2D(4, 1, activation="relu")(y)
        return layers.Add()([y, layers.Conv2D(y.shape[-1], 3, padding="same")(z)])

    def concat(self, number):
        y = self.pick(number)
        same = [t for t in self.pool if t.shape[1:3] == y.shape[1:3] and t.shape[-1] < 8]
        return layers.Concatenate()([y, same[number // 5 % len(same)]]) if same else y

    def squeeze_excite(self, number):
        y = self.pick(number)
        s = layers.GlobalAveragePooling2D()(y)
        s = layers.Dense(3, activation="relu")(s)
        s = layers.Dense(y.shape[-1], activation=("sigmoid", "hard_sigmoid")[number % 2])(s)
        return layers.Multiply()([y, layers.Reshape((1, 1, -1))(s)])

    def share(self, number):
        y = self.pick(number)
        fits = [layer for layer, channels in self.shared if channels == y.shape[-1]]
        return fits[number % len(fits)](y) if fits else y

    def nest(self, number):
        y = self.pick(number)
        fits = [m for m in self.nested if tuple(m.input_shape) == tuple(y.shape)]
        if fits and number % 2:
            return fits[0](y)
        parts = [
            keras.Input(y.shape[1:]),
            layers.Conv2D(5, 3, padding="same"),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Conv2D(y.shape[-1], 1),
        ]
        model = keras.Sequential(parts)
        if number % 3 == 0:
            z = keras.Input(y.shape[1:])
            model = keras.Model(z, layers.Add()([z, model(z)]))
        self.nested.append(model)
        return model(y)

    def function(self, number):
        y = self.pick(number)
        return FUNCTIONS[number % len(FUNCTIONS)](y) if y.shape[-1] < 12 else y

    def space(self, number):
        y = self.pick(number)
        if y.shape[1] > 10 or y.shape[1] < 3:
            return y
        kinds = (
            layers.MaxPooling2D(2, padding="same"),
            layers.AveragePooling2D(2, padding="same"),
            layers.ZeroPadding2D(1),
            layers.Cropping2D(1),
            layers.UpSampling2D(2),
            layers.Conv2DTranspose(5, 2, strides=2),
            layers.Conv2D(5, 2, strides=2),
            layers.Dropout(0.3),
        )
        return kinds[number % len(kinds)](y)

    def finish(self, number):
        """A hidden dense layer on one tensor flattened and the means of others."""
        parts = [layers.GlobalAveragePooling2D()(t) for t in self.pool[-1 - number % 3 :]]
        parts.append(layers.Flatten()(self.pool[-1]))
        y = layers.Concatenate()(parts)
        y = layers.Dense(6, activation=ACTIVATIONS[number % 6], name="hidden")(y)
        return keras.Model(self.x, layers.Dense(3, name="scores")(y))


KINDS = [
    name for name in vars(Builder) if not name.startswith("_") and name not in ("pick", "finish")
]
STEPS = st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 999)), min_size=2, max_size=9)


@hypothesis.settings(
    max_examples=COUNT,
    deadline=None,
    suppress_health_check=list(hypothesis.HealthCheck),
    print_blob=True,
)
@hypothesis.given(STEPS, st.integers(0, 999))
def test_masked_and_shrunk_agree(steps, number):
    keras.backend.clear_session()
    builder = Builder()
    for kind, detail in steps:
        builder.pool.append(getattr(builder, kind)(detail))
    model = builder.finish(number)
    # Some saturate and answer every input alike: on them nothing could be seen.
    graph, _, _ = assert_exact(
        model, seed=number, tolerance=1e-4, sees=lambda y: hypothesis.assume(sight(y) > 0.2)
    )
    # sigmoid(0) is not 0: then the hidden units stay.
    assert ("hidden" in {g.name for g in graph.groups}) is (ACTIVATIONS[number % 6] != "sigmoid")
