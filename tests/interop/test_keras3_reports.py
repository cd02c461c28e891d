"""Keras 3 models in reports: converted or run in inference mode, and left as they were."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from keras3_toys import L, keras, randomized

from tfkd import report

pytest.importorskip("ai_edge_litert")

RNG = np.random.default_rng(0)
# Far from the model's moving statistics: with those of a batch other classes win.
X = RNG.normal(2.0, 3.0, size=(40, 5)).astype("float32")


def network():
    x = keras.Input((5,), name="x")
    h = L.Dropout(0.5)(L.BatchNormalization(name="norm")(L.Dense(8, name="hidden")(x)))
    return randomized(keras.Model(x, L.Dense(3, name="logits")(h)))


class Own(keras.Model):
    """No counterpart in tf_keras."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def call(self, x, training=None):
        return self.inner(x, training=training)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Saved and loaded again."""
    path = tmp_path_factory.mktemp("keras3") / "model.keras"
    network().save(path)
    return keras.models.load_model(path)


def values(model):
    return [np.asarray(variable).copy() for variable in model.variables]


def answers(model):
    """Classes by hand, with the moving statistics."""
    kernel, bias = map(np.asarray, model.get_layer("hidden").weights)
    gamma, beta, mean, variance = map(np.asarray, model.get_layer("norm").weights)
    h = (X @ kernel + bias - mean) / np.sqrt(variance + 1e-3) * gamma + beta
    kernel, bias = map(np.asarray, model.get_layer("logits").weights)
    return (h @ kernel + bias).argmax(1)


@pytest.fixture
def unchanged(model):
    before = values(model)
    yield
    for one, other in zip(before, values(model), strict=True):
        np.testing.assert_array_equal(one, other)


def test_what_compare_says_of_it(model, unchanged):
    own = Own(model)
    models = {
        "converted": model,
        "own": own,
        "training": lambda x, training=True: np.asarray(model(x, training=training)),
        "bound": model.__call__,
    }
    table = report.compare(models, (X, answers(model)), runs=3, throughput_batch=4)
    assert [row.accuracy.mean for row in table.rows] == [100.0] * 4
    assert [row.runtime for row in table.rows] == ["LiteRT", "TensorFlow", "Python", "Python"]
    converted = table.rows[0]
    assert (converted.params, converted.macs) == (5 * 8 + 8 + 4 * 8 + 8 * 3 + 3, 5 * 8 + 8 * 3)
    assert converted.size > 0
    text = table.text()
    assert "converted is a Keras 3 model, converted by tfkd.from_keras3." in text
    assert "own is a Keras 3 model that tfkd.from_keras3 did not convert" in text
    assert "training, bound: Python functions, timed as they are." in text
    sentences = {one.model: str(one) for one in table.against()}
    assert sentences["bound"].endswith("(the times are those of a Python function and LiteRT)")
    assert "Python" not in sentences["own"]


class Holder:
    def __init__(self, model):
        self.model = model

    def __call__(self, x):
        return np.asarray(self.model(x, training=True))


@pytest.mark.parametrize("kind", ["closure", "object", "partial"])
def test_a_function_that_trains_it_is_refused(model, unchanged, kind):
    function = {
        "closure": lambda x: np.asarray(model(x, training=True)),
        "object": Holder(model),
        "partial": functools.partial(model, training=True),
    }[kind]
    with pytest.raises(ValueError, match=r"models\['f'\]`.*norm/moving_mean.*training=False"):
        report.compare({"f": function}, (X, np.zeros(40, int)), runs=2)


def test_times_of_it(model, unchanged):
    with pytest.raises(TypeError, match=r"runners\['a'\]`.*tfkd.from_keras3"):
        report.latency({"a": model}, X)
    with pytest.warns(UserWarning, match=r"runners\['a'\]`: .*norm/moving_mean"):
        report.latency({"a": lambda x: model(x, training=True)}, X, runs=2)
    assert report.latency({"a": model.__call__}, X, runs=2)["a"].runs == 2
    table = report.latency_table({"a": model, "b": lambda x: x}, X, runs=2)
    assert [(row.threads, row.latency.runs) for row in table.rows] == [(1, 2), (None, 2)]
    assert "converted by tfkd.from_keras3" in table.text()
    assert "b: a Python function, timed as it is." in table.text()


def test_what_names_the_way_out(model):
    with pytest.raises(TypeError, match="`model`.*tfkd.from_keras3"):
        report.profile(model)
    teacher_and_student = keras.distillation.Distiller(
        model, network(), distillation_losses=[keras.distillation.LogitsDistillation()]
    )
    with pytest.raises(TypeError, match=r"models\['a'\]`.*distiller.student"):
        report.compare({"a": teacher_and_student}, (X, np.zeros(40, int)))
    chain = [keras.Input(batch_shape=(8, 5, 2)), L.LSTM(3, stateful=True, name="memory")]
    with pytest.raises(ValueError, match="stateful=False.*'memory'"):
        report.compare({"a": keras.Sequential(chain)}, (np.ones((8, 5, 2)), np.zeros(8, int)))
