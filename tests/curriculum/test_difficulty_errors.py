"""What the functions of `tfkd.curriculum.difficulty` refuse, and what they say."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from toys import data, net

from tfkd.curriculum import difficulty

X, Y = data(10)


def quiet(function, *args, **kwargs):
    return function(*args, progress=False, **kwargs)


def loss_of(teacher, x=X, y=Y, **kwargs):
    return quiet(difficulty.teacher_loss, teacher, x, y, **kwargs)


def nan_for_a_negative_input(x):
    return tf.where(x[:, :1] < 0, np.nan, x[:, :3])


POSITIVE = np.abs(X)
POSITIVE[7] = -1.0
NAN = float("nan")

V, T = ValueError, TypeError
CASES = {
    "no examples": (lambda: loss_of(net(), X[:0], Y[:0]), V, r"`data`: .*at least one.*\(0, 5\)"),
    "no arrays": (lambda: loss_of(net(), {}, Y), T, "`data`: expected an array"),
    "x is a number": (lambda: loss_of(net(), 3, Y), T, r"`data`: expected an array.*3 \(int\)"),
    "a data set that shuffles": (
        lambda: loss_of(net(), tf.data.Dataset.from_tensor_slices(X).shuffle(9).batch(4), Y),
        V,
        "`data`: .*to examples by index: pass it without",
    ),
    "a data set without an end": (
        lambda: loss_of(net(), tf.data.Dataset.from_tensors(X).repeat(), Y),
        V,
        r"`data`: .*come to an end.*take\(n\)",
    ),
    "two lengths": (lambda: loss_of(net(), {"a": X, "b": X[:3]}), V, r"`data`: .*\[10, 3\]"),
    "too few labels": (lambda: loss_of(net(), X, Y[:4]), V, r"`labels`: expected 10 class.*\(4,\)"),
    "no labels": (lambda: loss_of(net(), X, None), T, "`labels`: expected 10 class numbers.*None"),
    "labels are text": (lambda: loss_of(net(), X, np.array(["a"] * 10)), T, "`labels`: .* 10"),
    "a label too large": (
        lambda: loss_of(net(), X, np.r_[Y[:4], 3, Y[5:]], batch_size=2),
        V,
        "`labels`: .*from 0 to 2.*example 4 is 3.*from 0",
    ),
    "one-hot of too many classes": (lambda: loss_of(net(), X, np.eye(4)[Y + 1]), V, "from 0 to 2"),
    "a negative label": (
        lambda: loss_of(net(), X, np.r_[Y[:9], -1]),
        V,
        "`labels`: .*from 0, .*example 9 is -1",
    ),
    "half a label": (lambda: loss_of(net(), X, Y + 0.5), V, "`labels`: .*example 0 is"),
    "NaN as label": (lambda: loss_of(net(), X, np.full(10, NAN)), V, "`labels`: .* 0 is nan"),
    "soft labels": (lambda: loss_of(net(), X, np.full((10, 3), 1 / 3)), V, "`labels`: .*one-hot"),
    "labels of rank 3": (
        lambda: loss_of(net(), X, np.zeros((10, 2, 3))),
        V,
        r"^`labels`: .* 10.*from_function\(lambda x, y",
    ),
    "labels of several outputs": (
        lambda: loss_of(net(), X, {"a": Y, "b": Y}),
        T,
        r"^`labels`: .*labels of outputs \['a', 'b'\].*labels\['a'\].*model\(x\)\['a'\]",
    ),
    "a list of them": (lambda: loss_of(net(), X, [Y, Y]), T, r"outputs \[0, 1\].*labels\[0\]"),
    "NaN from a teacher": (
        lambda: loss_of(nan_for_a_negative_input, POSITIVE, Y, batch_size=3),
        V,
        "`teacher`: .*finite.*NaN or infinity for example 7. Check its input",
    ),
    "NaN from a student": (
        lambda: quiet(difficulty.student_loss, nan_for_a_negative_input, POSITIVE, Y),
        V,
        "`student`: .*example 7",
    ),
    "several outputs": (
        lambda: loss_of(lambda x: {"a": x[:, :3]}),
        V,
        r"^`teacher`: .*one output.*'a': \(None, 3\).*model\(x\)\['a'\], or use from_function",
    ),
    "no classes": (lambda: loss_of(lambda x: x[:, 0]), V, r"`teacher`: .*received \(None"),
    "a map of scores": (lambda: loss_of(lambda x: x[:, None]), V, r"received \(None, 1, 5\)"),
    "no teacher": (lambda: loss_of(None), V, "`teacher`: expected a Keras model.*None"),
    "no teachers": (lambda: loss_of([]), V, "`teacher`: .*non-empty"),
    "a path as teacher": (lambda: loss_of("t.keras"), V, "`teacher`: .*load_model"),
    "teachers of other classes": (
        lambda: loss_of([net(), net(classes=4, seed=5)], X, Y),
        V,
        "several teachers.*same shape",
    ),
    "batch_size is 0": (lambda: loss_of(net(), batch_size=0), V, "`batch_size`: .*at least 1"),
    "preprocess is no function": (lambda: loss_of(net(), preprocess=3), T, "`preprocess`: .*call"),
    "progress is text": (
        lambda: difficulty.teacher_loss(net(), X, Y, progress="no"),
        T,
        "`progress`: expected True or False",
    ),
    "path is a number": (lambda: loss_of(net(), path=3), T, "`path`: expected a path or None"),
    "length of nothing": (lambda: difficulty.length([]), V, "`data`: expected at least one"),
    "length of one text": (lambda: difficulty.length("a text"), T, "`data`: .*strings"),
    "length of numbers": (lambda: difficulty.length(X), T, "`data`: expected token numbers"),
    "length of images": (lambda: difficulty.length(np.zeros((2, 3, 4), int)), T, "`data`: "),
    "half a padding": (lambda: difficulty.length([[1]], 0.5), T, "`padding`: .*integer"),
    "no images": (lambda: difficulty.object_count([]), V, "`labels`: expected at least one"),
    "objects of a dict": (
        lambda: difficulty.object_count({"labels": [[1]]}),
        V,
        r"`labels`: .*dict with either, received \['labels'\]",
    ),
    "objects of text": (lambda: difficulty.object_count(["a b"]), T, "`labels`: expected boxes"),
    "objects of rank 4": (
        lambda: difficulty.object_count(np.zeros((2, 3, 4, 5))),
        V,
        "`labels`: expected boxes",
    ),
    "a mask of other places": (
        lambda: difficulty.object_count(np.zeros((2, 3, 4)), mask=np.ones((2, 5), bool)),
        V,
        r"`mask`: expected bools \(2, M\)",
    ),
    "padding is NaN": (lambda: difficulty.object_count([[1]], NAN), V, "`padding`: .*finite"),
    "no function": (lambda: difficulty.from_function(3, X), T, "`function`: expected a callable"),
    "a function of the wrong length": (
        lambda: difficulty.from_function(lambda x: x[:3, 0], X),
        V,
        r"`function`: .*10 numbers.*\(3,\)",
    ),
    "a function without numbers": (
        lambda: difficulty.from_function(lambda x: ["a"] * 10, X),
        V,
        "`function`: .*10 numbers",
    ),
    "a function that returns NaN": (
        lambda: difficulty.from_function(lambda x: np.r_[np.ones(6), NAN, np.ones(3)], X),
        V,
        "`scores`: .*finite.*example 6 is nan",
    ),
    "a function of nothing": (lambda: difficulty.from_function(len, X[:0]), V, "`data`: .*one"),
    "scores of two axes": (lambda: difficulty.Difficulty(X, "a", ""), V, "`scores`: expected one"),
    "scores are text": (lambda: difficulty.Difficulty(["a"], "a", ""), T, "`scores`: expected one"),
    "no scores": (lambda: difficulty.Difficulty([], "a", ""), V, "`scores`: expected one"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_bad_arguments(name):
    do, error, words = CASES[name]
    with pytest.raises(error, match=f"(?s){words}"):
        do()
