"""What is measured runs in inference mode, and is the same afterwards."""

import warnings

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

import tfkd
from tfkd import report
from tfkd.report import inference

X = np.random.default_rng(0).normal(2.0, 3.0, size=(20, 4)).astype("float32")
SHIFT = np.float32([3.0, -3.0, 0.0, 0.0])


class Normalizing(tf.Module):
    """The moving mean is SHIFT: subtracted in inference, as documented; counts its calls."""

    def __init__(self):
        super().__init__()
        self.norm = keras.layers.BatchNormalization(epsilon=0.0)
        self.norm.build((None, 4))
        self.norm.moving_mean.assign(SHIFT)
        self.calls = tf.Variable(0)

    def __call__(self, x, training=True):
        self.calls.assign_add(1)
        return self.norm(x, training=training)


Y = (X - SHIFT).argmax(1)


@pytest.mark.filterwarnings("ignore:.*variables changed")
def test_a_module_is_compiled_and_keeps_its_variables():
    module = Normalizing()
    layer = keras.layers.BatchNormalization(epsilon=0.0)
    layer.build((None, 4))
    layer.moving_mean.assign(SHIFT)
    models = {
        "module": module,
        "layer": layer,
        "compiled": tf.function(module.__call__),
        "seeds": [Normalizing(), Normalizing()],
    }
    with pytest.warns(UserWarning, match=r"models\['module'\]`: 1 of its variables changed"):
        table = report.compare(models, (X, Y), runs=2, throughput_batch=None)
    assert [row.accuracy.mean for row in table.rows] == [100.0] * 4
    assert {row.runtime for row in table.rows} == {"TensorFlow"}
    assert "compiled TensorFlow functions." in table.text()
    assert module.calls.numpy() == 0
    np.testing.assert_array_equal(module.norm.moving_mean, SHIFT)


class Random(tf.Module):
    """Not to be compiled: NumPy's numbers would be those of the first call for ever."""

    def __init__(self):
        super().__init__()
        self.generator = tf.random.Generator.from_seed(3)

    def __call__(self, x):
        return np.asarray(x) + 1e-6 * self.generator.normal(tf.shape(x)).numpy()


def test_what_cannot_be_compiled_is_run_as_it_is():
    module = Random()
    before = module.generator.state.numpy()
    with pytest.warns(UserWarning, match="draws random numbers"):
        (row,) = report.compare({"a": module}, (X, X.argmax(1)), runs=2).rows
    assert (row.runtime, row.accuracy.mean) == ("Python", 100.0)
    np.testing.assert_array_equal(module.generator.state, before)


@pytest.mark.filterwarnings("ignore:.*variables changed")
def test_variables_come_back_after_an_error():
    module = Normalizing()

    def broken(x):
        module(x)
        raise RuntimeError("broken")

    for measure in (
        lambda: report.compare({"a": broken}, (X, Y)),
        lambda: report.latency_table({"a": broken}, X),
        lambda: report.latency({"a": broken}, X),
    ):
        with pytest.raises(RuntimeError, match="broken"):
            measure()
        assert module.calls.numpy() == 0
        np.testing.assert_array_equal(module.norm.moving_mean, SHIFT)


@pytest.mark.parametrize(
    ("target", "knows"),
    [
        (lambda x, training=True: x, True),
        (lambda x, *, training: x, True),
        (tf.function(lambda x, training=True: x), True),
        (keras.layers.Dropout(0.5), True),
        (keras.layers.Dropout(0.5).call, True),
        (keras.layers.Dense(3), False),
        (lambda x: x, False),
        (lambda x, **options: x, False),
        (np.mean, False),
    ],
)
def test_who_knows_the_word(target, knows):
    assert inference.knows_training(target) == knows


def test_restored_models_know_it_too(tmp_path):
    module = Normalizing()
    saved = tf.Module()
    saved.norm = module.norm
    saved.__call__ = tf.function(lambda x, training=True: module.norm(x, training=training))
    for training in (True, False):
        saved.__call__.get_concrete_function(tf.TensorSpec((None, 4)), training=training)
    tf.saved_model.save(saved, str(tmp_path))
    restored = tf.saved_model.load(str(tmp_path))
    (row,) = report.compare({"a": restored}, (X, Y), runs=2).rows
    assert (row.accuracy.mean, row.runtime) == (100.0, "TensorFlow")
    np.testing.assert_array_equal(restored.norm.moving_mean, SHIFT)


def test_a_distiller_is_no_model_to_be_measured():
    def net():
        return keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])

    distiller = tfkd.Distiller(net(), net(), tfkd.losses.LogitsDistillation())
    for measure in (
        lambda: report.compare({"a": distiller}, (X, Y)),
        lambda: report.compare({"a": [distiller]}, (X, Y)),
        lambda: report.latency({"a": distiller}, X),
        lambda: report.latency_table({"a": distiller}, X),
        lambda: report.profile(distiller),
    ):
        with pytest.raises(TypeError, match=r"Pass distiller\.student"):
            measure()


def test_dropout_in_training_mode_is_said():
    x, y = np.ones((64, 8), np.float32), np.zeros(64, int)
    layers = [keras.layers.Dense(16), keras.layers.Dropout(0.5), keras.layers.Dense(3)]
    model = keras.Sequential([keras.Input((8,)), *layers])
    with pytest.warns(UserWarning, match=r"models\['a'\].*other outputs.*training=False"):
        report.compare({"a": lambda x: model(x, training=True)}, (x, y), runs=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report.compare({"a": lambda x: model(x), "b": model}, (x, y), runs=3)
