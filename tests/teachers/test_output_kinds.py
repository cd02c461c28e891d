"""What outputs are told to be by their values, and what is said of it."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
import toys

import tfkd
from tfkd.teachers import output_kinds

X = np.random.default_rng(0).normal(size=(32, 5)).astype(np.float32)
KERNEL = np.random.default_rng(1).normal(size=(5, 4)).astype(np.float32)


def scores(x):
    return tf.matmul(x, KERNEL)


def told(function, want, from_logits=None, sample=X):
    """(kind, the warnings) of a function of x."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        evidence = output_kinds.look(function, function, output_kinds.examples(sample))
        kinds = output_kinds.settle("teacher", evidence, [want], [from_logits])
    return kinds[0], [str(w.message) for w in caught if str(w.message).startswith("teacher")]


def hidden(function):
    """Behind a compiled function, where no graph shows it."""
    return tf.function(lambda x: function(scores(x)), autograph=False)


def half(z):
    return tf.cast(tf.nn.softmax(tf.cast(z, tf.float16)), tf.float32)


def over_axis_1(z):
    return tf.nn.softmax(tf.reshape(z, (-1, 2, 2)), 1)


def side_by_side(z):
    return tf.concat([tf.nn.softmax(z), tf.nn.softmax(-z)], 1)


@pytest.mark.parametrize(
    ("function", "want", "kind", "words"),
    [
        (hidden(tf.nn.softmax), "softmax", "softmax", "does not show a softmax"),
        (hidden(half), "softmax", "softmax", "does not show a softmax"),
        (lambda x: tf.matmul(x, KERNEL[1:]), "softmax", None, None),
        (hidden(tf.sigmoid), "sigmoid", "sigmoid", "does not show a sigmoid"),
        (hidden(tf.nn.log_softmax), "softmax", "logits", None),
        (hidden(lambda z: 0.0 * z), "sigmoid", "logits", None),
        (hidden(lambda z: 0.0 * z), "softmax", "logits", None),
        (hidden(tf.identity), "sigmoid", "logits", None),
        (hidden(tf.nn.relu), "sigmoid", "logits", None),
        (lambda x: tf.sigmoid(scores(x)), "sigmoid", "sigmoid", None),
        (lambda x: tf.clip_by_value(scores(x), 0.0, 1.0), "sigmoid", "sigmoid", None),
        (hidden(over_axis_1), "softmax", "softmax", "axis 1"),
        (hidden(side_by_side), "softmax", "softmax", "each row sums to 2"),
    ],
)
def test_values_decide(function, want, kind, words):
    found, said = told(function, want)  # None: it can't be run, which the run itself tells
    assert found == kind
    assert len(said) == (words is not None)
    assert words is None or words in said[0]


def test_probabilities_in_steps_of_int8_are_told():
    """As a .tflite file gives them: each of 100 classes is off by up to 1/512."""
    p = np.exp(toys.log_softmax(np.random.default_rng(0).normal(size=(32, 100))))
    steps = np.rint(p * 256) / 256
    assert np.abs(steps.sum(-1) - 1).max() > 0.02
    one = output_kinds.Evidence()
    output_kinds.see(one, steps)
    assert one.seen == "one"


def test_masked_places_and_rows_that_are_not_finite_do_not_count():
    p = np.float32([[[0.2, 0.8], [0.0, 0.0]], [[0.5, 0.5], [np.nan, 1.0]]])
    one = output_kinds.Evidence()
    output_kinds.see(one, p)
    assert one.seen == "one"


def test_evidence_in_conflict():
    few = tf.function(lambda x: tf.abs(tf.sin(scores(x))), autograph=False)
    kind, said = told(few, "sigmoid", from_logits=True)
    assert kind == "logits" and "has from_logits=True" in said[0]
    kind, said = told(few, "sigmoid", from_logits=False)
    assert kind == "sigmoid" and len(said) == 1
    kind, said = told(hidden(tf.nn.softmax), "softmax", from_logits=True)
    assert kind == "softmax" and "expects logits, but its outputs are probabilities" in said[0]
    kind, said = told(hidden(tf.identity), "sigmoid", from_logits=False)
    assert kind == "logits" and "leave [0, 1]" in said[0]
    biased = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(4), keras.layers.Reshape((4,))]
    )
    biased.set_weights([np.eye(4, dtype=np.float32), np.zeros(4, np.float32)])
    both = lambda x: [biased(tf.nn.softmax(scores(x))), 1.0 * scores(x)]  # noqa: E731
    kind, said = told(both, "softmax")
    assert kind == "softmax" and "ends in logits, but its outputs are probabilities" in said[0]


def test_declared_outputs_need_no_look_at_values():
    few = tfkd.losses.declare_outputs(lambda x: tf.abs(tf.sin(scores(x))), "logits")
    assert told(few, "sigmoid") == ("declared logits", [])
    few = tfkd.losses.declare_outputs(lambda x: tf.abs(tf.sin(scores(x))), "sigmoid")
    assert told(few, "sigmoid", from_logits=True) == ("sigmoid", [])


def test_one_example_is_made_more():
    """A logit alone is in [0, 1] often enough."""
    single = tf.function(lambda x: x[:, :1], autograph=False)
    assert told(single, "sigmoid", sample=np.float32([[0.4, 0, 0, 0, 0]])) == ("logits", [])


def test_a_data_set_is_not_read():
    """Its order may depend on how often it was: inputs of its form are made up."""
    read = []

    def rows():
        read.append(1)
        yield X[0], 0

    spec = (tf.TensorSpec((None, 5)), tf.TensorSpec((None,), tf.int32))
    dataset = tf.data.Dataset.from_generator(rows, output_signature=spec)
    assert told(hidden(tf.nn.softmax), "softmax", sample=dataset)[0] == "softmax"
    assert told(hidden(tf.nn.relu), "sigmoid", sample=dataset)[0] == "logits"
    assert not read
    assert output_kinds.examples(iter([X])) is None
    tokens = output_kinds.examples(tf.TensorSpec((None, 7), tf.int32))
    assert tokens.shape == (16, 7) and tokens.dtype == tf.int32
