"""A model built anew from its calls: each is visited, and its layers are copies."""

from __future__ import annotations

import numpy as np
import tensorflow as tf
import tf_keras as keras

from tfkd.networks.call_graph import CallGraph
from tfkd.networks.rebuild import Rebuilder

layers = keras.layers


def test_rebuilding_visits_every_call():
    x = keras.Input((3,))
    dense = layers.Dense(3, use_bias=False, kernel_initializer="identity", name="dense")
    model = keras.Model(x, {"y": dense(layers.ReLU(name="act")(dense(x)))}, name="net")
    seen = []

    rebuilder = Rebuilder()

    def visit(call, args, kwargs):
        assert call.layer in model.layers
        seen.append((*call.key, len(args), kwargs))
        if call.name == "act":
            return layers.Rescaling(3.0, name="tripled")(*args)
        return rebuilder.copy(call, args, kwargs)

    new = rebuilder.build(CallGraph(model), visit)
    assert seen == [("dense", 0, 1, {}), ("act", 0, 1, {}), ("dense", 1, 1, {})]
    assert [layer.name for layer in new.layers] == [x.node.layer.name, "dense", "tripled"]
    assert new.name == "net"
    np.testing.assert_allclose(new(-np.ones((1, 3)))["y"], [[-3.0] * 3])
    assert new.get_layer("dense") is not dense


def test_variables_among_the_arguments_become_constants():
    x = keras.Input((2,))
    factor = tf.Variable([1.0, 2.0])
    model = keras.Model(x, tf.multiply(x, factor))
    rebuilder = Rebuilder()
    new = rebuilder.build(CallGraph(model), rebuilder.copy)
    factor.assign([5.0, 5.0])
    np.testing.assert_allclose(new(np.ones((1, 2))), [[1.0, 2.0]])


def test_added_losses_are_kept_or_left_out():
    x = keras.Input((2,))
    y = layers.Dense(2, use_bias=False, kernel_initializer="identity")(x)
    model = keras.Model(x, y)
    model.add_loss(tf.reduce_sum(y))
    for keep, expected in ((True, [3.0]), (False, [])):
        rebuilder = Rebuilder()
        new = rebuilder.build(CallGraph(model), rebuilder.copy, keep_losses=keep)
        new(np.array([[1.0, 2.0]]))
        assert [float(loss) for loss in new.losses] == expected
