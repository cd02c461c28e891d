"""`compare` on real models and files: every column has the value it should."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from tfkd import report

pytest.importorskip("ai_edge_litert")


def linear(kernel, bias=(0.0, 0.0, 0.0)):
    """x → x·kernel + bias, with given weights.

    The name is given too: a TFLite file holds it, so its size is known only then.
    """
    layers = [keras.Input((2,), name="x"), keras.layers.Dense(3, name="logits")]
    model = keras.Sequential(layers, name="linear")
    model.set_weights([np.asarray(kernel, "float32"), np.asarray(bias, "float32")])
    return model


RIGHT = [[5.0, 0, 0], [0, 5, 0]]
X = np.array([[1, 0], [0, 1], [1, 0], [0, 1]], "float32")
Y = np.array([0, 1, 0, 1])


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    from tfkd import export

    return export.to_tflite(linear(RIGHT), tmp_path_factory.mktemp("m") / "right.tflite").path


@pytest.fixture(scope="module")
def table(file):
    models = {
        "right": linear(RIGHT),
        "seeds": [linear(RIGHT), linear(np.zeros((2, 3)), (1, 0, 0))],
        "file": str(file),
    }
    return report.compare(models, (X, Y), like={"file": linear(RIGHT)}, runs=7)


def test_all_columns(table, file):
    right, seeds, stored = table.rows
    assert right.accuracy.values == (100.0,)
    assert seeds.accuracy.values == (100.0, 50.0)
    assert seeds.accuracy.sd == pytest.approx(np.std([100, 50], ddof=1))
    assert stored.accuracy.values == (100.0,)
    assert {(row.params, row.macs) for row in table.rows} == {(9, 6)}
    assert stored.size == file.stat().st_size == right.size
    assert {row.latency.runs for row in table.rows} == {7}
    assert all(0 < row.latency.p50 <= row.latency.p99 for row in table.rows)
    assert "one thread" in table.notes[0] and "7 runs" in table.notes[0]


def test_a_data_set_of_batches_and_a_file_without_counts(file):
    data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(3)
    (row,) = report.compare({"file": file}, data, runs=2, threads=2).rows
    assert row.accuracy.values == (100.0,)
    assert (row.params, row.macs) == (None, None)


@pytest.mark.parametrize(
    ("models", "data", "name"),
    [
        ({}, (X, Y), "models"),
        ([linear(RIGHT)], (X, Y), "models"),
        ({"a": 3}, (X, Y), r"models\['a'\]"),
        ({"a": []}, (X, Y), r"models\['a'\]"),
        ({"a": "missing.tflite"}, (X, Y), "missing.tflite"),
        ({"a": linear(RIGHT)}, X, "data"),
        ({"a": linear(RIGHT)}, (X, Y[:2]), "data"),
        ({"a": linear(RIGHT)}, (X[:0], Y[:0]), "data"),
        ({"a": linear(RIGHT)}, tf.data.Dataset.from_tensors((X, Y)).repeat(), "data"),
    ],
)
def test_bad_arguments(models, data, name):
    with pytest.raises((ValueError, TypeError), match=name):
        report.compare(models, data)


def test_like_must_name_a_model():
    with pytest.raises(ValueError, match="`like`"):
        report.compare({"a": linear(RIGHT)}, (X, Y), like={"b": linear(RIGHT)})
