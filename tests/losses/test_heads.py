"""What the graph proves an output to be, and the scores behind it."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
import toys

import tfkd
from tfkd.losses import heads
from tfkd.losses.ranges import in_unit

Z = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32) * 3
SURE = np.float32([[300.0, 0.0, -300.0, 10.0]])  # its softmax is 1, 0, 0, 0 in float32


def traced(function, z):
    """(proved kind, its scores or None, whether [0, 1] is proved) of a function of scores."""
    found = {}

    @tf.function(autograph=False)
    def run(z):
        out = function(z)
        proved = heads.proof(out)
        found["kind"], found["unit"] = (proved and proved.kind), in_unit(out)
        found["shape"] = proved and proved.scores.shape == out.shape
        return out if proved is None else proved.scores

    return found, run.get_concrete_function(tf.TensorSpec((None, 4)))(tf.constant(z)).numpy()


KEPT = {
    "flatten": lambda z: keras.layers.Flatten()(tf.nn.softmax(z[:, None, None])),
    "reshape": lambda z: tf.reshape(tf.nn.softmax(z), (-1, 1, 1, 4)),
    "squeeze": lambda z: tf.squeeze(tf.nn.softmax(z[:, None, None]), (1, 2)),
    "expand": lambda z: tf.expand_dims(tf.nn.softmax(z), 1),
    "transpose": lambda z: tf.transpose(tf.raw_ops.Softmax(logits=z[:, None]), (1, 0, 2)),
    "cast": lambda z: tf.cast(tf.nn.softmax(tf.cast(z, tf.float64)), tf.float32),
    "fake quantized": lambda z: tf.quantization.fake_quant_with_min_max_vars(
        tf.nn.softmax(z), 0.0, 1.0
    ),
    "joined": lambda z: tf.concat([tf.nn.softmax(z[:, None]), tf.nn.softmax(2 * z[:, None])], 1),
}


@pytest.mark.parametrize("kind", KEPT)
def test_scores_behind_what_only_rearranges(kind):
    """Also those that float32 has lost in the softmax."""
    found, scores = traced(KEPT[kind], SURE)
    assert found == {"kind": "softmax", "unit": True, "shape": True}
    expected = np.stack([SURE, 2 * SURE], 1) if kind == "joined" else SURE.reshape(scores.shape)
    np.testing.assert_allclose(scores, expected, rtol=1e-6)


OTHER_ROWS = {
    "two in one row": lambda z: tf.reshape(tf.nn.softmax(z), (-1, 8)),
    "side by side": lambda z: tf.concat([tf.nn.softmax(z), tf.nn.softmax(z)], -1),
    "classes not last": lambda z: tf.transpose(tf.nn.softmax(tf.reshape(z, (-1, 2, 2))), (0, 2, 1)),
    "another axis": lambda z: tf.nn.softmax(tf.reshape(z, (-1, 2, 2)), axis=1),
    "cut apart": lambda z: tf.reshape(tf.nn.softmax(z), (-1, 2, 2)),
}


@pytest.mark.parametrize("kind", OTHER_ROWS)
def test_rows_that_are_no_distribution_prove_nothing(kind):
    assert traced(OTHER_ROWS[kind], Z)[0]["kind"] is None


RANGES = {
    "hard sigmoid": (keras.activations.hard_sigmoid, True),
    "mean": (lambda z: (tf.sigmoid(z) + tf.sigmoid(-z)) / 2, True),
    "by hand": (lambda z: 1 / (1 + tf.exp(-z)), True),
    "softmax by hand": (lambda z: (lambda e: e / tf.reduce_sum(e, -1, True))(tf.exp(z)), True),
    "clipped": (lambda z: tf.clip_by_value(z, 0.0, 1.0), True),
    "smoothed": (lambda z: 0.9 * tf.nn.softmax(z) + 0.1 / 4, True),
    "largest": (lambda z: tf.maximum(tf.sigmoid(z), tf.sigmoid(2 * z)), True),
    "relu": (tf.nn.relu, False),
    "tanh": (tf.tanh, False),
    "sum": (lambda z: tf.sigmoid(z) + tf.sigmoid(-z), False),
    "logits": (lambda z: z, False),
}


@pytest.mark.parametrize("kind", RANGES)
def test_the_range_that_an_output_cannot_leave(kind):
    function, expected = RANGES[kind]
    assert traced(function, Z)[0]["unit"] is expected


def test_a_sigmoid_may_be_rearranged_in_any_way():
    found, scores = traced(lambda z: tf.transpose(tf.reshape(tf.sigmoid(z), (-1, 2, 2))), Z)
    assert found["kind"] == "sigmoid"
    np.testing.assert_array_equal(scores, Z.reshape(-1, 2, 2).T)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_log_odds_are_finite_and_exact(dtype):
    p = np.array([0.0, 0.25, 0.5, 0.75, 1.0], dtype)
    found = heads.log_odds(tf.constant(p)).numpy()
    np.testing.assert_allclose(found[1:4], [-np.log(3), 0, np.log(3)], atol=1e-6)
    # 1 stands for all that rounds to it.
    half = {"float16": 2.0**-12, "float32": 2.0**-25}[dtype]
    assert found[0] < -60
    assert found[4] == pytest.approx(-np.log(half), rel=1e-5)
    assert heads.log_p(tf.constant(p)).numpy()[0] == pytest.approx(np.log(1e-30), rel=1e-5)


@pytest.mark.parametrize(
    ("form", "units"), [("reshape", 1), ("reshape", 4), ("mean", 1), ("mean", 4), ("hard", 1)]
)
def test_a_loss_on_labels_reads_any_head(form, units):
    """In `compile` of a plain Keras model, where nobody has looked at values."""
    x = keras.Input((5,))
    squash = "sigmoid" if units == 1 else "softmax"
    p = keras.layers.Dense(units, squash)(x)
    if form == "reshape":
        p = keras.layers.Reshape((units,))(keras.layers.Reshape((1, units))(p))
    elif form == "mean":
        p = keras.layers.Average()([p, keras.layers.Dense(units, squash)(x)])
    else:
        p = keras.layers.Dense(1, "hard_sigmoid")(x)
    model = toys.randomize(keras.Model(x, p), 0)
    data, y = toys.data(8, classes=max(units, 2))
    model.compile("sgd", tfkd.losses.ExpectedErrorLoss())
    found = model.evaluate(data, y, verbose=0)
    p = model.predict(data, verbose=0).astype(np.float64)
    right = np.where(y == 1, p[:, 0], 1 - p[:, 0]) if units == 1 else p[np.arange(8), y]
    assert found == pytest.approx(np.mean(1 - right), rel=1e-4)


def test_what_is_declared_goes_before_all():
    @tf.function
    def run(z):
        return heads.scores_behind(tf.nn.softmax(z), heads.DECLARED_LOGITS)

    np.testing.assert_allclose(run(Z), np.exp(toys.log_softmax(Z)), rtol=1e-5)
    with pytest.raises(ValueError, match="`kind`: expected one of 'logits', 'softmax'"):
        tfkd.losses.declare_outputs(lambda x: x, "softmaxes")
    with pytest.raises(TypeError, match="`model`: expected a model or function that can be marked"):
        tfkd.losses.declare_outputs(3, "logits")
