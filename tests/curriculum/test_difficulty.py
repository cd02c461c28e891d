"""Difficulty scores: their values, and the one pass that makes them."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
import toys
from toys import data, net

import tfkd
from tfkd.curriculum import difficulty
from tfkd.curriculum.scoring import Scorer
from tfkd.teachers import forward as teachers

X, Y = data(10)
COUNT = len(X)
BY_LABEL = (difficulty.teacher_loss, difficulty.teacher_margin, difficulty.student_loss)


def quiet(function, *args, **kwargs):
    return function(*args, progress=False, **kwargs)


def loss_of(teacher, x=X, y=Y, **kwargs):
    return quiet(difficulty.teacher_loss, teacher, x, y, **kwargs).scores


def probabilities(model, x=X):
    return np.exp(toys.log_softmax(model(x)))


def label_losses(p, y=Y):
    return -np.log(p[np.arange(len(y)), y])


@pytest.fixture
def calls(monkeypatch):
    """Sizes of the batches that teachers are run on, and how often they are traced."""
    seen = {"sizes": [], "traces": 0}
    original = teachers.Teachers.__call__

    def counted(self, x):
        seen["traces"] += 1
        first = tf.nest.flatten(x)[0]
        tf.py_function(lambda t: seen["sizes"].append(int(t.shape[0])), [first], [])
        return original(self, x)

    monkeypatch.setattr(teachers.Teachers, "__call__", counted)
    return seen


@pytest.mark.parametrize("batch_size", [1, 4, 5, 10, 256])
@pytest.mark.parametrize("last", [None, "softmax"])
def test_values_by_hand(batch_size, last):
    model = net(seed=1, last=last)
    p = model(X).numpy().astype(np.float64) if last else probabilities(model)
    expected = {"teacher_loss": label_losses(p), "student_loss": label_losses(p)}
    others = p.copy()
    others[np.arange(COUNT), Y] = -1
    expected["teacher_margin"] = others.max(1) - p[np.arange(COUNT), Y]
    for function in BY_LABEL:
        found = quiet(function, model, X, Y, batch_size=batch_size)
        np.testing.assert_allclose(found.scores, expected[found.kind], rtol=1e-5, atol=1e-6)
    found = quiet(difficulty.teacher_entropy, model, X, batch_size=batch_size)
    np.testing.assert_allclose(found.scores, -(p * np.log(p)).sum(1), rtol=1e-5)
    assert found.scores.dtype == np.float64 and found.kind == "teacher_entropy"


@pytest.mark.parametrize("last", [None, "sigmoid"])
def test_one_output_is_the_second_of_two_classes(last):
    model = net(seed=1, classes=1, last=last)
    y = Y % 2
    p = 1 / (1 + np.exp(-net(seed=1, classes=1)(X).numpy().astype(np.float64)[:, 0]))
    p = np.stack([1 - p, p], 1)
    own, other = p[np.arange(COUNT), y], p[np.arange(COUNT), 1 - y]
    np.testing.assert_allclose(loss_of(model, y=y), -np.log(own), rtol=1e-5)
    margin = quiet(difficulty.teacher_margin, model, X, y).scores
    np.testing.assert_allclose(margin, other - own, rtol=1e-4, atol=1e-6)
    entropy = quiet(difficulty.teacher_entropy, model, X).scores
    np.testing.assert_allclose(entropy, -(p * np.log(p)).sum(1), rtol=1e-5)


def test_several_teachers_are_averaged_in_probability():
    models = [net(width, seed=width) for width in (3, 4, 7)]
    p = np.mean([probabilities(model) for model in models], 0)
    np.testing.assert_allclose(loss_of(models), label_losses(p), rtol=1e-5)
    np.testing.assert_allclose(loss_of(tuple(models)), label_losses(p), rtol=1e-5)


def test_a_sure_teacher_keeps_its_small_probabilities():
    scores = np.float32([[60.0, 0.0, -30.0]])
    assert loss_of(lambda x: x, scores, np.array([2]))[0] == pytest.approx(90.0, rel=1e-5)
    # In float32 both would be 0.
    sure = loss_of(lambda x: x, np.float32([[20.0, 0.0], [24.0, 0.0]]), np.array([0, 0]))
    np.testing.assert_allclose(sure, np.log1p(np.exp([-20.0, -24.0])), rtol=1e-6)
    p_of_zero = np.float32([[0.0, -np.inf, -np.inf]])
    assert quiet(difficulty.teacher_entropy, lambda x: x, p_of_zero).scores[0] == 0.0


@pytest.mark.parametrize("form", [Y[:, None], np.eye(3)[Y], Y.astype(np.float32), Y.astype("u1"),
                                  np.eye(3, dtype=bool)[Y], list(Y), tf.constant(Y)])  # fmt: skip
def test_labels_of_every_form(form):
    model = net(seed=1)
    np.testing.assert_allclose(loss_of(model, y=form), label_losses(probabilities(model)), 1e-5)


def test_dropout_and_batch_norm_are_as_in_inference():
    x = keras.Input((5,))
    hidden = keras.layers.Dropout(0.9)(keras.layers.BatchNormalization()(x))
    model = toys.randomize(keras.Model(x, keras.layers.Dense(3)(hidden)), 1)
    before = toys.weights_of(model)
    expected = label_losses(np.exp(toys.log_softmax(model(X, training=False))))
    np.testing.assert_allclose(loss_of(model, batch_size=3), expected, rtol=1e-5)
    toys.assert_untouched(before, model)
    assert model.trainable


@pytest.mark.parametrize("last", [None, "softmax"])
def test_a_keras_3_model(last):
    keras3 = pytest.importorskip("keras", minversion="3.0")
    if keras3.backend.backend() != "tensorflow":
        pytest.skip("Keras 3 does not run on TensorFlow here")
    model = keras3.Sequential([keras3.Input((5,)), keras3.layers.Dense(3, activation=last)])
    scores = np.asarray(model(X))
    expected = label_losses(scores if last else np.exp(toys.log_softmax(scores)))
    np.testing.assert_allclose(loss_of(model), expected, rtol=1e-4)


def test_a_restored_saved_model_with_a_softmax_hidden_in_it(tmp_path):
    module = tf.Module()
    module.model = net(seed=1)
    spec = tf.TensorSpec((None, 5), tf.float32, name="image")
    serve = tf.function(
        lambda image: {"p": tf.nn.softmax(module.model(image))}, input_signature=[spec]
    )
    tf.saved_model.save(module, str(tmp_path), signatures=serve)
    restored = tf.saved_model.load(str(tmp_path))
    expected = label_losses(probabilities(module.model))
    np.testing.assert_allclose(loss_of(restored, batch_size=4), expected, rtol=1e-4)


@pytest.mark.parametrize("form", ["dict", "list", "tuple"])
def test_several_inputs(form):
    a, b = keras.Input((5,), name="a"), keras.Input((2,), name="b")
    out = keras.layers.Dense(3)(keras.layers.Concatenate()([a, b]))
    inputs = {"dict": {"a": a, "b": b}, "list": [a, b], "tuple": (a, b)}[form]
    model = toys.randomize(keras.Model(inputs, out), 1)
    other = np.float32(np.random.default_rng(1).normal(size=(COUNT, 2)))
    x = {"dict": {"a": X, "b": other}, "list": [X, other], "tuple": (X, other)}[form]
    expected = label_losses(probabilities(model, x))
    np.testing.assert_allclose(loss_of(model, x, batch_size=4), expected, rtol=1e-5)


def test_preprocess_is_a_function_of_the_batch():
    images = np.random.default_rng(0).integers(0, 256, (COUNT, 5)).astype(np.uint8)
    model = net(seed=1)
    found = loss_of(model, images, preprocess=lambda x: tf.cast(x, tf.float32) / 255.0)
    expected = label_losses(probabilities(model, np.float32(images) / 255))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("function", [*BY_LABEL, difficulty.teacher_entropy])
def test_one_pass_and_one_trace(calls, function):
    args = (net(), X) if function is difficulty.teacher_entropy else (net(), X, Y)
    quiet(function, *args, batch_size=4)
    assert calls["sizes"] == [4, 4, 2]
    assert calls["traces"] == 1


def test_a_scorer_traces_nothing_when_the_model_has_trained(calls):
    model = net()
    scorer = Scorer("student", model, difficulty._crossentropy)
    labels = Y.astype(np.int64)
    before = scorer(X, labels, 4, False)
    model.set_weights([2 * weight for weight in model.get_weights()])
    after = scorer(X[:5], labels[:5], 3, False)
    assert calls["traces"] == 1 and calls["sizes"] == [4, 4, 2, 3, 2]
    expected = label_losses(probabilities(model))[:5]
    np.testing.assert_allclose(after, expected, rtol=1e-5)
    assert not np.allclose(before[:5], after)


class Rows:
    """Data that is read as it is needed, and knows how many rows were asked for at once."""

    def __init__(self, array):
        self.array, self.shape, self.dtype, self.most = array, array.shape, array.dtype, 0

    def __len__(self):
        return len(self.array)

    def __getitem__(self, part):
        rows = self.array[part]
        self.most = max(self.most, len(rows))
        return rows

    def __array__(self, *args, **kwargs):
        raise AssertionError("all of the data at once")


def test_only_a_batch_is_held_at_a_time():
    x = np.zeros((300, 400, 80), np.float32)
    rows = Rows(x)
    weights = tf.zeros((80, 3))
    found = loss_of(lambda b: tf.reduce_mean(b, 1) @ weights, rows, np.zeros(300, int),
                    batch_size=16)  # fmt: skip
    np.testing.assert_allclose(found, np.log(3), rtol=1e-6)
    assert 0 < rows.most <= 32


def test_a_bar_only_if_asked_for_and_in_a_terminal(capsys, monkeypatch):
    for terminal in (True, False):
        monkeypatch.setattr("sys.stdout.isatty", lambda terminal=terminal: terminal)
        difficulty.teacher_loss(net(), X, Y, batch_size=4)
        assert ("3/3" in capsys.readouterr().out) == terminal
    loss_of(net())
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("x, expected", [
    (np.array([[3, 4, 0], [0, 0, 0], [1, 0, 2]]), [2, 0, 2]),
    ([[3, 4], [], [1, 5, 2]], [2, 0, 3]),
    ([np.array([3, 0]), np.array([9])], [1, 1]),
    (tf.ragged.constant([[3, 4], [], [1]]), [2, 0, 1]),
    (["one", "two  words\n", ""], [1, 2, 0]),
    (np.array(["a b c", "d"]), [3, 1]),
    (np.array([b"a b", b"c"], object), [2, 1]),
    (tf.constant(["a b c", "d"]), [3, 1]),
])  # fmt: skip
def test_length(x, expected):
    found = difficulty.length(x)
    assert found.scores.tolist() == expected and found.kind == "length"


def test_length_with_another_padding():
    assert difficulty.length(np.array([[1, 0, 2], [1, 1, 1]]), padding=1).scores.tolist() == [2, 0]


BOXES = np.full((2, 3, 4), -1.0)
BOXES[0, :2], BOXES[1, 0] = [0, 0, 5, -1], [1, 1, 2, 2]


@pytest.mark.parametrize("y, expected", [
    ([np.zeros((2, 4)), np.zeros((0, 4))], [2, 0]),
    ([[], [[0, 0, 1, 1]]], [0, 1]),
    ([[3, 1, 1], [2]], [3, 1]),
    (tf.RaggedTensor.from_row_lengths(np.zeros((3, 4)), [1, 2]), [1, 2]),
    (tf.ragged.constant([[1], [4, 5]]), [1, 2]),
    (BOXES, [2, 1]),
    (np.array([[0, 2, -1], [-1, -1, -1]]), [2, 0]),
    ({"boxes": BOXES, "classes": np.array([[0, 2, -1], [1, -1, -1]])}, [2, 1]),
    ({"boxes": tf.constant(BOXES)}, [2, 1]),
])  # fmt: skip
def test_object_count(y, expected):
    found = difficulty.object_count(y)
    assert found.scores.tolist() == expected and found.kind == "object_count"


def test_object_count_by_mask_or_another_padding():
    mask = np.array([[True, False, True], [False] * 3])
    assert difficulty.object_count(np.zeros((2, 3, 4)), mask=mask).scores.tolist() == [2, 0]
    classes = np.array([[1, 2, 0], [0, 0, 0]])
    assert difficulty.object_count(classes, padding=0).scores.tolist() == [2, 0]


def test_from_function():
    found = difficulty.from_function(lambda x, y: x[:, 0] * y, X, Y)
    np.testing.assert_allclose(found.scores, X[:, 0] * Y, rtol=1e-6)
    assert difficulty.from_function(lambda x: X[:, :1], X).scores.shape == (COUNT,)
    words = difficulty.from_function(lambda x: [len(t) for t in x], ["abc", "d"])
    assert words.scores.tolist() == [3, 1] and words.kind == "function"
    assert difficulty.from_function(lambda x: tf.norm(x, axis=1), X).scores.shape == (COUNT,)


def test_what_a_difficulty_is():
    found = difficulty.length([[1, 2], [3, 0]])
    assert len(found) == 2 and np.asarray(found).dtype == np.float64
    assert np.asarray(found, np.float32).dtype == np.float32
    np.testing.assert_array_equal(np.array(found) + 1, [3, 2])
    with pytest.raises(ValueError):
        np.array(found, np.float32, copy=False)
    assert repr(found) == "Difficulty('length', 2 examples, 1 to 2)"
    with pytest.raises(ValueError, match="read-only"):
        found.scores[0] = 5
    with pytest.raises(AttributeError):
        found.kind = "loss"
    given = np.zeros(3)
    kept = difficulty.Difficulty(given, "mine", "")
    given[0] = 1
    assert kept.scores.tolist() == [0, 0, 0]


def test_scores_go_into_a_curriculum():
    found = quiet(difficulty.teacher_loss, net(), X, Y)
    pace = tfkd.schedules.Linear(0.5, 1.0, end_step=4)
    curriculum = tfkd.curriculum.Curriculum((X, Y), found, pace, 4, balance_classes=False)
    assert set(curriculum.ranking[:4]) == set(np.argsort(found.scores)[:4])
