"""Mining of negatives and the selection of a step, against loops in NumPy."""

from __future__ import annotations

import detection_toys as toys
import multibox_reference as reference
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tfkd.detection import UNLABELLED, Matcher
from tfkd.losses import MultiBoxSelection
from tfkd.losses.base import Shared
from tfkd.losses.detection import hard_negatives


def mine(losses, labels, *args):
    labels = np.asarray(labels)
    found = hard_negatives(tf.constant(losses, tf.float32), labels > 0, labels == 0, *args)
    return found.numpy()


@pytest.mark.parametrize("levels", [None, 2])
@pytest.mark.parametrize("ratio, least", [(3.0, 0), (1.5, 0), (0.5, 2), (3.0, 5), (100.0, 0)])
def test_hard_negatives(levels, ratio, least):
    """100 rows in each of 10 cases; half with many equal losses."""
    rng = np.random.default_rng(0)
    losses = rng.uniform(0, 1, (100, 12)).astype(np.float32)
    if levels:
        losses = np.round(losses * levels) / levels
    labels = rng.choice([-1, 0, 0, 0, 1], (100, 12))
    labels[:5] = [[0], [1], [-1], [0], [1]]
    found = mine(losses, labels, ratio, least)
    expected = [reference.hardest(*row, ratio, least) for row in zip(losses, labels, strict=True)]
    np.testing.assert_array_equal(found, expected)


@given(
    arrays(np.int8, (4, 9), elements=st.integers(0, 2)),
    arrays(np.int8, (4, 9), elements=st.integers(-1, 1)),
    st.sampled_from([0.5, 1.0, 3.0]),
    st.integers(0, 10),
)
def test_their_number_is_exact(losses, labels, ratio, least):
    """However many losses are equal: never more, and all there are if they are too few."""
    found = mine(losses, labels, ratio, least)
    wanted = np.maximum(np.floor(ratio * (labels > 0).sum(1)), least)
    np.testing.assert_array_equal(found.sum(1), np.minimum(wanted, (labels == 0).sum(1)))
    assert not found[labels != 0].any()
    for i in range(4):
        left = (labels[i] == 0) & ~found[i]
        if found[i].any() and left.any():
            assert losses[i][found[i]].min() >= losses[i][left].max()


def test_losses_that_are_infinite_are_hardest():
    found = mine([[1.0, np.inf, np.inf, 2.0]], [[1, 0, 0, 0]], 2.0)
    assert found.tolist() == [[False, True, True, False]]


def test_no_gradient_flows_through_the_choice():
    losses = tf.constant([[1.0, 2.0, 3.0]])
    with tf.GradientTape() as tape:
        tape.watch(losses)
        chosen = hard_negatives(losses, [[True, False, False]], [[False, True, True]], 1.0)
        value = tf.reduce_sum(tf.cast(chosen, tf.float32))
    assert tape.gradient(value, losses) is None


@pytest.mark.parametrize("scores", ["softmax", "sigmoid"])
@pytest.mark.parametrize("ratio, least", [(3.0, 0), (1.0, 3), (None, 0)])
def test_a_selection(scores, ratio, least):
    y = toys.objects(60, 4, seed=1)
    y["classes"][::11] = UNLABELLED
    student = toys.outputs(60, seed=2, scores=3 if scores == "softmax" else 2)
    matcher = Matcher(toys.ANCHORS, 0.5, 0.4)
    chosen = MultiBoxSelection(matcher, ratio, least, scores=scores)(y, student)
    expected = reference.Batch(
        y, student, toys.ANCHORS.priors, None, scores, ratio, least, threshold=0.5, ignore_from=0.4
    )
    np.testing.assert_array_equal(chosen.labels, expected.labels)
    np.testing.assert_array_equal(chosen.positive, expected.positive)
    np.testing.assert_array_equal(chosen.selected, expected.selected)
    np.testing.assert_allclose(chosen.offsets, expected.offsets, rtol=1e-4, atol=1e-4)
    assert float(chosen.count) == expected.positive.sum() > 0
    everywhere = [
        [
            expected.entropy(label, z)[0] if label >= 0 else 0.0
            for label, z in zip(labels, rows, strict=True)
        ]
        for labels, rows in zip(expected.labels, expected.student["classes"], strict=True)
    ]
    np.testing.assert_allclose(chosen.losses, everywhere, rtol=1e-5, atol=1e-6)


def test_an_image_without_objects_gives_as_many_negatives_as_are_asked_for():
    nothing, student = toys.objects(3, 0), toys.outputs(3)
    for least in (0, 2, 100):
        chosen = MultiBoxSelection(Matcher(toys.ANCHORS), min_negatives=least)(nothing, student)
        assert (chosen.selected.numpy().sum(1) == min(least, toys.PRIORS)).all()
        assert float(chosen.count) == 0


def test_targets_that_the_data_set_has_matched():
    y, student = toys.objects(4), toys.outputs(4)
    matcher = Matcher(toys.ANCHORS)
    mine, theirs = (
        MultiBoxSelection(matcher)(y, student),
        MultiBoxSelection(None)(matcher(y), student),
    )
    for a, b in zip(mine, theirs, strict=True):
        np.testing.assert_array_equal(a, b)


def test_other_names_of_outputs():
    y, student = toys.objects(4), toys.outputs(4)
    other = {"box": student["boxes"], "classification": student["classes"]}
    first = MultiBoxSelection(Matcher(toys.ANCHORS))(y, student)
    second = MultiBoxSelection(
        Matcher(toys.ANCHORS), boxes="box", classes="classification"
    )(y, other)  # fmt: skip
    np.testing.assert_array_equal(first.selected, second.selected)


class Counting:
    """A matcher, or the teacher's boxes, that counts its calls."""

    def __init__(self, function):
        self.function, self.calls, self.seen = function, 0, []

    def __call__(self, *args):
        self.calls += 1
        self.seen.append(args)
        return self.function(*args)


def test_a_step_has_one_selection():
    matcher = Counting(Matcher(toys.ANCHORS))
    selection = MultiBoxSelection(matcher)
    y, student = toys.objects(4), toys.outputs(4)
    shared = Shared([selection])
    first = selection.once(shared, y, student, None)
    assert selection.once(shared, y, student, None) is first and matcher.calls == 1
    selection.once(Shared(), y, student, None)
    selection.once(None, y, student, None)
    assert matcher.calls == 3


def test_two_selections_of_one_form_are_one_and_others_are_not():
    y, student, shared = toys.objects(4), toys.outputs(4), Shared()

    def chosen(matcher, *args):
        return MultiBoxSelection(matcher, *args).once(shared, y, student, None)

    first, again = (chosen(Matcher(toys.ANCHORS)) for _ in range(2))
    assert first is again
    assert chosen(Matcher(toys.ANCHORS), 1.0) is not first
    # A function can't be compared with another.
    assert chosen(lambda y: Matcher(toys.ANCHORS)(y)) is not chosen(
        lambda y: Matcher(toys.ANCHORS, 0.9)(y)
    )


def test_what_the_teacher_sees():
    add = Counting(lambda y, teacher: {**y, "classes": tf.ones_like(y["classes"])})
    selection = MultiBoxSelection(Matcher(toys.ANCHORS), teacher_boxes=add)
    y = toys.objects(4, seed=3)
    y["classes"] = np.minimum(y["classes"], 0)
    y["boxes"] = np.abs(y["boxes"])
    student, teacher = toys.outputs(4), toys.outputs(4, seed=1)
    assert not (selection(y, student).labels.numpy() == 2).any() and add.calls == 0
    assert (selection(y, student, teacher).labels.numpy() == 2).any()
    # A loss on the labels is handed no teacher: what is shared knows it.
    selection.once(Shared(teacher=teacher), y, student, None)
    assert add.calls == 2 and add.seen[1][1] is teacher
