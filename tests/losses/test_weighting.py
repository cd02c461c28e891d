"""Sample weights of any shape beside values of any shape, against NumPy."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_cases import inputs

from tfkd.losses import AttentionTransfer, LogitsDistillation, RelationalDistillation
from tfkd.losses.base import Elements, ElementwiseLoss
from tfkd.losses.weighting import weights_like

quick = settings(deadline=None, max_examples=30)


class OfLayer(ElementwiseLoss):
    """A loss on a layer whose values are the student's features as they are."""

    student_layer_name = "layer"

    def elements(self, teacher_outputs, student_outputs):
        return [Elements(student_outputs)]


def unknown(function, *arrays):
    """The function in a graph that knows no ranks of the last array."""
    specs = [tf.TensorSpec(a.shape, a.dtype) for a in arrays[:-1]]
    traced = tf.function(function, input_signature=[*specs, tf.TensorSpec(None, tf.float32)])
    return traced(*arrays).numpy()


@quick
@given(data=st.data())
def test_the_shapes_that_weights_may_have(data):
    """(B,), (B, 1), a prefix of the positions, all of them; and axes of 1 behind any."""
    shape = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    used = data.draw(st.integers(1, len(shape)))
    ones = data.draw(st.integers(0, 2))
    rng = np.random.default_rng(data.draw(st.integers(0, 999)))
    values = rng.normal(size=shape).astype(np.float32)
    weight = rng.uniform(size=shape[:used]).astype(np.float32)
    want = np.einsum(values, range(len(shape)), weight, range(used), range(len(shape)))
    given_weight = weight.reshape(*weight.shape, *[1] * ones)
    got = values * weights_like(tf.constant(values), tf.constant(given_weight)).numpy()
    np.testing.assert_allclose(got, want, rtol=1e-6)
    got = unknown(lambda v, w: v * weights_like(v, w), values, given_weight)
    np.testing.assert_allclose(got, want, rtol=1e-6)


@quick
@given(data=st.data())
def test_weights_of_positions_that_a_loss_has_not(data):
    """The mean of each example's weights, whether the graph knows the shapes or not."""
    positions = tuple(data.draw(st.lists(st.integers(2, 4), min_size=1, max_size=3)))
    shape = data.draw(st.sampled_from([(3,), (3, 5), (3, 5, 7)]))
    rng = np.random.default_rng(data.draw(st.integers(0, 999)))
    values = rng.normal(size=shape).astype(np.float32)
    weight = rng.uniform(size=(3, *positions)).astype(np.float32)
    mean = weight.reshape(3, -1).mean(1).reshape(3, *[1] * (len(shape) - 1))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        got = weights_like(tf.constant(values), tf.constant(weight), OfLayer())
    assert len(caught) == 1
    np.testing.assert_allclose(values * got.numpy(), values * mean, rtol=1e-5)
    got = unknown(lambda v, w: v * weights_like(v, w, OfLayer()), values, weight)
    np.testing.assert_allclose(got, values * mean, rtol=1e-5)


def test_positions_that_the_graph_does_not_know():
    """Open sizes: what fits is used as it is, else the mean of each example."""
    values = np.arange(12, dtype=np.float32).reshape(2, 3, 2)
    spec = tf.TensorSpec((None, None, None), tf.float32)
    call = tf.function(lambda v, w: v * weights_like(v, w, OfLayer()), input_signature=[spec] * 2)
    weight = np.float32([[[1, 2], [3, 4], [5, 6]], [[0, 0], [1, 1], [2, 3]]])
    np.testing.assert_allclose(call(values, weight), values * weight)
    np.testing.assert_allclose(call(values, weight[:, :2, :1]), values * [[[2.0]], [[0.5]]])


@pytest.mark.parametrize("make", [lambda: AttentionTransfer("a", "a"), RelationalDistillation])
def test_weights_of_positions_in_a_loss_are_said_once(make):
    rng = np.random.default_rng(0)
    teacher, student = (rng.normal(size=(4, 3, 5, 6)).astype(np.float32) for _ in range(2))
    weight = rng.uniform(size=(4, 3, 5)).astype(np.float32)
    want = make().compute_loss(teacher, student, sample_weight=weight.mean((1, 2)))
    loss = make()
    for shown in (weight, weight[..., None]):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            got = loss.compute_loss(teacher, student, sample_weight=shown)
        assert len(caught) == (shown is weight)
        np.testing.assert_allclose(got, want, rtol=1e-5)
    loss = make()
    with pytest.warns(UserWarning, match=rf"{loss.name}: .*shape \(4, 3, 5\).*the mean of each"):
        loss.compute_loss(teacher, student, sample_weight=weight)


def test_weights_that_fit_nothing_are_refused():
    teacher, student, _ = inputs("kl")
    for weight in (np.ones((5, 4)), np.ones((5, 2, 2))):
        with pytest.raises(ValueError, match=r"`sample_weight`.*fits the loss's values, \(5,\)"):
            LogitsDistillation().compute_loss(teacher, student, sample_weight=weight)
