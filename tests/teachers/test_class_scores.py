"""Which outputs are told to hold class scores, by declaration, loss, graph and values."""

import numpy as np
import pytest
import tf_keras as keras

import tfkd
from tfkd.teachers import class_scores

L = keras.layers
ROWS = np.random.default_rng(0).normal(size=(40, 3))
UNIT = ROWS / np.linalg.norm(ROWS, axis=1, keepdims=True)


def test_rows_of_length_one_are_no_class_scores():
    assert class_scores.of_values(UNIT) == "values"
    assert class_scores.of_values(np.rint(UNIT * 127) / 127) == "values"  # of a quantized model
    assert class_scores.of_values(UNIT[:3]) == class_scores.of_values(ROWS) == "unknown"


@pytest.mark.parametrize(
    ("loss", "kind"),
    [
        ("sparse_categorical_crossentropy", "classes"),
        (keras.losses.SparseCategoricalCrossentropy(from_logits=True), "classes"),
        (tfkd.losses.ExpectedErrorLoss(), "classes"),
        ("mse", "values"),
        (keras.losses.Huber(), "values"),
        (keras.losses.mean_absolute_error, "values"),
        ("binary_crossentropy", "values"),
        (lambda y, p: p, "unknown"),
        (None, "unknown"),
    ],
)
def test_the_loss_tells(loss, kind):
    model = keras.Sequential([keras.Input((4,)), L.Dense(3)])
    model.compile("sgd", loss)
    assert class_scores.of_outputs(model, ["unknown"]) == [kind]


def test_each_output_and_what_goes_before():
    x = keras.Input((4,))
    outputs = {"a": L.Dense(3, name="a")(x), "b": L.Dense(2, "sigmoid", name="b")(x)}
    model = keras.Model(x, {**outputs, "c": L.Dense(3, name="c")(x)})
    assert class_scores.of_outputs(model, ["unknown"] * 3) == ["unknown", "values", "unknown"]
    model.compile("sgd", {"a": "categorical_crossentropy", "b": "mse", "c": "mse"})
    found = class_scores.of_outputs(model, ["values", "values", "classes"])
    assert found == ["classes", "values", "classes"]
    tfkd.losses.declare_outputs(model, {"a": "sigmoid", "b": "logits", "c": "softmax"})
    assert class_scores.of_outputs(model, ["classes"] * 3) == ["values", "classes", "classes"]
