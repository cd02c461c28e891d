"""Files of scores: read back as they were, used again only where nothing has changed."""

from __future__ import annotations

import functools
import json
import warnings

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
import toys
from toys import data, net

from tfkd import artifacts
from tfkd.curriculum import difficulty
from tfkd.fingerprints import digest
from tfkd.teachers import forward as teachers

X, Y = data(10)


@pytest.fixture
def calls(monkeypatch):
    """Counts forward passes of teachers."""
    seen = []
    original = teachers.Teachers.__call__

    def counted(self, x):
        tf.py_function(lambda: seen.append(1), [], [])
        return original(self, x)

    monkeypatch.setattr(teachers.Teachers, "__call__", counted)
    return seen


def score(path, teacher=None, x=X, y=Y, function=difficulty.teacher_loss, **kwargs):
    teacher = net(seed=1) if teacher is None else teacher
    return function(teacher, x, y, path=path, progress=False, **kwargs)


def half(x):
    return x / 2


def test_what_is_saved_is_loaded(tmp_path):
    made = score(tmp_path / "folder" / "d.npz")
    loaded = difficulty.Difficulty.load(tmp_path / "folder" / "d.npz")
    np.testing.assert_array_equal(loaded.scores, made.scores)
    assert (loaded.kind, loaded.fingerprint) == ("teacher_loss", made.fingerprint)
    assert loaded.parts == made.parts and len(made.fingerprint) == 64
    manifest = artifacts.read_manifest(tmp_path / "folder" / "d.npz")
    assert manifest["recipe"]["fingerprint"] == made.fingerprint and manifest["examples"] == 10


def test_the_same_again_makes_no_pass(tmp_path, calls):
    path = tmp_path / "d.npz"
    first = score(path, batch_size=4)
    assert len(calls) == 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # Another model object under another name, and labels of another form.
        again = score(path, net(seed=1, name="another"), y=np.eye(3)[Y], batch_size=5)
    assert len(calls) == 3
    np.testing.assert_array_equal(first.scores, again.scores)


def of_a_dict(x, model=net(seed=1)):  # noqa: B008
    return model(x["input"])


@pytest.mark.parametrize("change, words", [
    ({"teacher": net(seed=2)}, "another teacher"),
    ({"teacher": [net(seed=1), net(seed=2)]}, "another teacher"),
    ({"teacher": net(seed=1, last="softmax")}, "another teacher"),
    ({"x": X + 1}, "another data"),
    ({"x": X.astype(np.float64)}, "another data"),
    ({"x": {"input": X}, "teacher": of_a_dict}, "data and another teach"),
    ({"y": 2 - Y}, "another labels"),
    ({"preprocess": half}, "another preprocess"),
    ({"function": difficulty.teacher_margin}, "holds teacher_loss, not teacher_margin"),
    ({"function": difficulty.student_loss}, "holds teacher_loss, not student_loss"),
])  # fmt: skip
def test_another_fingerprint_is_scored_again(tmp_path, calls, change, words):
    path = tmp_path / "d.npz"
    score(path)
    expected = score(None, **change)
    done = len(calls)
    with pytest.warns(UserWarning, match=f"d.npz .*{words}.*: scoring again") as caught:
        found = score(path, **change)
    assert caught[0].filename == __file__
    assert len(calls) == done + 1
    np.testing.assert_array_equal(found.scores, expected.scores)
    loaded = difficulty.Difficulty.load(path)
    assert loaded.fingerprint == found.fingerprint != digest([])


def test_warnings_point_at_the_caller(tmp_path):
    for function, first, second in (
        (difficulty.length, [[1]], [[1, 2]]),
        (difficulty.object_count, [[1]], [[1, 2]]),
        (functools.partial(difficulty.from_function, len), ["a"], ["bc"]),
    ):
        if isinstance(function, functools.partial):
            function = functools.partial(difficulty.from_function, lambda x: [len(t) for t in x])
        path = tmp_path / "d.npz"
        for suffix in ("", ".manifest.json"):
            (tmp_path / f"d.npz{suffix}").unlink(missing_ok=True)
        function(first, path=path)
        with pytest.warns(UserWarning, match="another data") as caught:
            function(second, path=path)
        assert caught[0].filename == __file__


def damage(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("do, words", [
    (damage, "SHA-256"),
    (lambda path: path.write_bytes(path.read_bytes()[:-20]), "bytes, as its manifest says"),
    (lambda path: artifacts.manifest_path(path).unlink(), "manifest.json is missing"),
    (lambda path: artifacts.manifest_path(path).write_text("{"), "cannot be read"),
])  # fmt: skip
def test_a_damaged_file_is_refused_and_scored_again(tmp_path, calls, do, words):
    path = tmp_path / "d.npz"
    first = score(path)
    do(path)
    with pytest.raises(ValueError, match=f"(?s)`path`: .*{words}"):
        difficulty.Difficulty.load(path)
    with pytest.warns(UserWarning, match=f"(?s)can't be used.*{words}.*scoring again"):
        again = score(path)
    assert len(calls) == 2
    np.testing.assert_array_equal(first.scores, again.scores)
    np.testing.assert_array_equal(difficulty.Difficulty.load(path).scores, first.scores)


@pytest.mark.parametrize("with_manifest", [False, True])
def test_a_file_of_another_kind_is_not_overwritten(tmp_path, with_manifest):
    path = tmp_path / "train.npz"
    np.savez(path, x=X)
    if with_manifest:
        artifacts.write_manifest(path, {"format": "mine"})
    before = path.read_bytes()
    with pytest.raises(ValueError, match="`path`: expected a file of .*not overwritten"):
        score(path)
    assert path.read_bytes() == before


def test_scores_that_are_not_numbers_are_refused(tmp_path):
    path = tmp_path / "d.npz"
    recipe = {"format": "tfkd difficulty, 1", "kind": "a", "fingerprint": "b", "parts": {}}
    np.savez(path, document=np.array(json.dumps(recipe)), scores=np.array([1.0, np.nan]))
    artifacts.write_manifest(path, recipe)
    with pytest.raises(ValueError, match="`scores`: expected finite"):
        difficulty.Difficulty.load(path)
    with pytest.raises(ValueError, match="`path`: expected a file that exists"):
        difficulty.Difficulty.load(tmp_path / "nothing.npz")


def test_a_later_format_is_refused(tmp_path):
    path = tmp_path / "d.npz"
    np.savez(path, document=np.array(json.dumps({"format": "tfkd difficulty, 9"})))
    artifacts.write_manifest(path, {})
    with pytest.raises(ValueError, match="difficulty, 9.*this version reads"):
        difficulty.Difficulty.load(path)


# What a fingerprint sees


def scaled(by):
    return lambda x: x * by


def scaled_later(by):
    return lambda x: (lambda y: y * by)(x)


class Scale:
    def __init__(self, by):
        self.by = by

    def __call__(self, x):
        return x * self.by

    def method(self, x):
        return x * self.by


def sequential(activation="relu", width=3):
    return toys.randomize(
        keras.Sequential([keras.layers.Dense(width, activation, input_shape=(2,))]), 1
    )


A = np.arange(6.0)


@pytest.mark.parametrize("make", [
    lambda: A, lambda: A.reshape(2, 3), lambda: A.astype("float32"), lambda: A.astype("int64"),
    lambda: A[::-1], lambda: {"a": A}, lambda: {"b": A}, lambda: [A, A], lambda: [A, [A]],
    lambda: np.array(["ab", "c"]), lambda: np.array(["a", "bc"]), lambda: ["ab", "c"],
    lambda: ["a", "bc"], lambda: 1, lambda: 1.0, lambda: True, lambda: "1", lambda: None,
    lambda: tf.ragged.constant([[1], [2, 3]]), lambda: tf.ragged.constant([[1, 2], [3]]),
    lambda: scaled(1), lambda: scaled(2), lambda: scaled_later(1), lambda: scaled_later(2),
    lambda: Scale(1), lambda: Scale(2), lambda: Scale(1).method, lambda: Scale(2).method,
    lambda: functools.partial(half, 1), lambda: functools.partial(half, 2), lambda: half,
    lambda: scaled(A), lambda: scaled(A + 1), lambda: tf.nn.softmax, lambda: tf.nn.relu,
    sequential, lambda: sequential("tanh"), lambda: sequential(width=4),
    lambda: scaled(sequential()), lambda: scaled(sequential("tanh")),
    lambda: keras.layers.Rescaling(2.0), lambda: keras.layers.Rescaling(3.0),
])  # fmt: skip
def test_digests_are_the_same_again_and_apart_from_all_others(make, seen={}):  # noqa: B006
    found = digest(make())
    assert digest(make()) == found
    assert seen.setdefault(found, make) is make


def test_a_weight_changes_the_digest():
    model = sequential()
    before = digest(model)
    model.weights[0].assign_add(tf.ones((2, 3)) * 1e-6)
    assert digest(model) != before


def test_rows_are_hashed_as_one_array():
    x = np.random.default_rng(0).normal(size=(3000, 900))  # more than one chunk
    assert digest(x) == digest(x.copy(order="F")) == digest(tf.constant(x))
    x[2999, 899] += 1
    assert digest(x) != digest(x - 0 * x + 1)


def test_a_function_that_refers_to_itself():
    def loop(x):
        return loop(x)

    assert digest(loop) == digest(loop)
