"""Which prior answers for which object: against a walk down the list of all pairs."""

from __future__ import annotations

import json

import detection_toys as toys
import multibox_reference as reference
import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tfkd.detection import IGNORED, PADDING, UNLABELLED, Anchors, Matcher
from tfkd.detection.boxes import decode_offsets, to_corners
from tfkd.detection.matching import bipartite, objects

LEFT_RIGHT = np.float32([[0.25, 0.5, 0.5, 1.0], [0.75, 0.5, 0.5, 1.0]])
# 4, 16 and more priors on multiples of 1/16: overlaps are ratios of small numbers, often equal.
ON_GRID = Anchors([2, 4], sizes=[[(0.5, 0.5), (0.75, 0.25)], [(0.25, 0.25)]])


def call(matcher, y):
    return {name: value.numpy() for name, value in matcher(y).items()}


def image(*rows):
    """One image without a batch; a row is (class, x1, y1, x2, y2)."""
    rows = np.float32(rows).reshape(-1, 5)
    return {"boxes": rows[:, 1:], "classes": rows[:, 0].astype(np.int32)}


@pytest.mark.parametrize("anchors, grid", [(toys.ANCHORS, None), (ON_GRID, 16)])
@pytest.mark.parametrize("threshold, ignore_from", [(0.5, None), (0.5, 0.4), (0.7, 0.3)])
def test_targets(anchors, grid, threshold, ignore_from):
    """1,000 images in all six cases together, and 1,000 more of `bipartite` below."""
    y = toys.objects(170, 5, seed=1, grid=grid)
    y["classes"][::23] = UNLABELLED
    some = y["classes"][1::5, :2]
    some[some >= 0] = IGNORED
    variances = (0.2, 0.1, 0.3, 0.4)
    found = call(Matcher(anchors, threshold, ignore_from, variances), y)
    assert found["boxes"].dtype == np.float32 and found["classes"].dtype == np.int32
    for i in range(170):
        labels, offsets = reference.match(
            np.float64(y["boxes"][i]),
            y["classes"][i],
            np.float64(anchors.priors),
            threshold,
            ignore_from,
            variances,
        )
        np.testing.assert_array_equal(found["classes"][i], labels, err_msg=str(i))
        np.testing.assert_allclose(found["boxes"][i], offsets, rtol=1e-4, atol=1e-4)
    assert {-1, 0, 1} < set(np.unique(found["classes"]))


@pytest.mark.parametrize("objects_of_image, priors", [(6, 9), (9, 4), (1, 5), (4, 1)])
@pytest.mark.parametrize("levels", [None, 4])
def test_pairs_are_those_of_the_sorted_list(objects_of_image, priors, levels):
    """Also where many overlaps are equal: then the first object's goes first."""
    overlap = np.random.default_rng(0).uniform(-0.3, 1, (125, objects_of_image, priors))
    if levels:
        overlap = np.round(overlap * levels) / levels
    overlap[::7, 0] = -1.0
    found = bipartite(tf.constant(overlap, tf.float32)).numpy()
    expected = [reference.down_the_list(one) for one in overlap]
    np.testing.assert_array_equal(found, expected)


@given(arrays(np.int8, (8, 5, 7), elements=st.integers(-1, 3)))
def test_pairs_of_any_numbers(overlap):
    found = bipartite(tf.constant(overlap / 3, tf.float32)).numpy()
    np.testing.assert_array_equal(found, [reference.down_the_list(one / 3) for one in overlap])


def test_every_object_gets_a_prior_where_enough_overlap_it():
    """Each object overlaps all priors: none can be left over, whatever the others take."""
    overlap = np.random.default_rng(1).uniform(0.01, 1, (1000, 6, 6))
    found = bipartite(tf.constant(overlap, tf.float32)).numpy()
    np.testing.assert_array_equal(np.sort(found, 1), np.tile(np.arange(6), (1000, 1)))


def test_two_objects_that_want_one_prior_both_get_one():
    priors = np.float32([[0.3, 0.5, 0.4, 0.4], [0.6, 0.5, 0.4, 0.4], [0.9, 0.9, 0.1, 0.1]])
    y = image((0, 0.1, 0.3, 0.5, 0.7), (1, 0.12, 0.3, 0.52, 0.7))
    found = call(Matcher(priors), y)
    assert found["classes"].tolist() == [1, 2, 0]
    back = decode_offsets(tf.constant(found["boxes"]), priors).numpy()
    np.testing.assert_allclose(back[:2], y["boxes"], atol=1e-5)


def test_an_object_below_the_threshold_gets_its_best_prior_only():
    found = call(Matcher(LEFT_RIGHT, 0.5), image((3, 0.0, 0.0, 0.2, 0.2)))
    assert found["classes"].tolist() == [4, 0]
    # One that touches no prior gets none.
    far = np.float32([[0.25, 0.25, 0.5, 0.5]])
    assert call(Matcher(far), image((3, 0.5, 0.5, 1.0, 1.0)))["classes"].tolist() == [0]


def test_the_band_between_object_and_background():
    # Their overlaps with the whole image are 1, 1/2, 3/8 and 1/16.
    priors = np.float32([[0.5, 0.5, 1, h] for h in (1, 0.5, 0.375, 0.0625)])
    y = image((0, 0.0, 0.0, 1.0, 1.0))
    for threshold, ignore_from, expected in (
        (0.5, None, [1, 1, 0, 0]),
        (0.5, 0.375, [1, 1, -1, 0]),
        (0.75, 0.375, [1, -1, -1, 0]),
        (1.0, 0.0625, [1, -1, -1, -1]),
        (0.5, 0.5, [1, 1, 0, 0]),
    ):
        assert call(Matcher(priors, threshold, ignore_from), y)["classes"].tolist() == expected


def test_what_nobody_labelled_is_ignored():
    y = toys.objects(4, 3, seed=5)
    labelled = call(Matcher(toys.ANCHORS), y)
    y["classes"][1] = UNLABELLED
    # One row says it of the whole image, also beside an object.
    y["boxes"][2], y["classes"][2] = [0.0, 0.0, 0.5, 0.5], [UNLABELLED, 1, -1]
    found = call(Matcher(toys.ANCHORS), y)
    assert (found["classes"][1:3] == -1).all() and not found["boxes"][1:3].any()
    for i in (0, 3):
        np.testing.assert_array_equal(found["classes"][i], labelled["classes"][i])


def test_an_object_to_ignore_hides_the_priors_that_it_would_have():
    matcher = Matcher(LEFT_RIGHT)
    left, right = (0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)
    found = call(matcher, image((IGNORED, *left)))
    assert found["classes"].tolist() == [-1, 0] and not found["boxes"].any()
    # Other objects keep theirs, in whichever order they come.
    for rows in ([(4, *left), (IGNORED, *left)], [(IGNORED, *left), (4, *left)]):
        assert call(matcher, image(*rows))["classes"].tolist() == [5, 0]
    assert call(matcher, image((4, *left), (IGNORED, *right)))["classes"].tolist() == [5, -1]
    # Below the threshold it is the best prior, and none where an object would have none.
    small = image((IGNORED, 0.0, 0.0, 0.2, 0.2))
    assert call(matcher, small)["classes"].tolist() == [-1, 0]
    assert call(Matcher(LEFT_RIGHT, every_object=False), small)["classes"].tolist() == [0, 0]
    # An IoU of 1/3 with both halves is in the band of priors that are ignored anyway.
    middle = image((IGNORED, 0.25, 0.0, 0.75, 1.0))
    banded = Matcher(LEFT_RIGHT, 0.5, 0.25, every_object=False)
    assert call(banded, middle)["classes"].tolist() == [-1, -1]


def no_objects(*shape):
    return {"boxes": np.zeros((*shape, 4), np.float32), "classes": np.zeros(shape, np.int32)}


def test_no_objects_at_all():
    matcher = Matcher(toys.ANCHORS, ignore_from=0.3)
    for y in (no_objects(2, 0), no_objects(0), toys.objects(2, 0)):
        found = call(matcher, y)
        assert not found["classes"].any() and not found["boxes"].any()
        assert found["boxes"].shape == (*y["classes"].shape[:-1], toys.PRIORS, 4)
    assert call(matcher, no_objects(0, 3))["boxes"].shape == (0, toys.PRIORS, 4)
    graph = tf.function(
        matcher,
        input_signature=[
            {
                "boxes": tf.TensorSpec((None, None, 4)),
                "classes": tf.TensorSpec((None, None), tf.int32),
            }
        ],
    )
    assert not graph(no_objects(2, 0))["classes"].numpy().any()
    y = toys.objects(3, 2, seed=1)
    np.testing.assert_array_equal(graph(y)["classes"], matcher(y)["classes"])


NUMBERS = st.sampled_from([-1.0, 0.0, 0.5, 1.0, 2.0, np.nan, np.inf, -np.inf])


@given(
    arrays(np.float32, (3, 4), elements=NUMBERS),
    arrays(np.int32, 3, elements=st.integers(-1, 1)),
)
def test_boxes_of_any_numbers(boxes, classes):
    """At the border, without area, turned, outside, and padding of any value."""
    found = call(Matcher(toys.ANCHORS, ignore_from=0.2), {"boxes": boxes, "classes": classes})
    assert np.isfinite(found["boxes"]).all()
    with np.errstate(invalid="ignore"):
        sides = boxes[:, 2:] - boxes[:, :2]
    real = (classes >= 0) & (sides > 0).all(1)
    kept = {"boxes": boxes[real], "classes": classes[real]}
    alone = call(Matcher(toys.ANCHORS, ignore_from=0.2), kept)
    for name in ("classes", "boxes"):
        np.testing.assert_array_equal(found[name], alone[name])


def test_more_objects_than_priors():
    y = toys.objects(50, 12, seed=3)
    priors = toys.ANCHORS.priors[:3]
    found = call(Matcher(priors, 0.9), y)
    for i in range(50):
        expected, _ = reference.match(y["boxes"][i], y["classes"][i], priors, 0.9)
        np.testing.assert_array_equal(found["classes"][i], expected)
    crowded = (y["classes"] >= 0).sum(1) > 8
    assert crowded.any() and (found["classes"][crowded] > 0).all()


def test_ragged_objects_are_padded_ones():
    y = toys.objects(9, 4, seed=2)
    rows = [y["classes"][i] >= 0 for i in range(9)]
    ragged = {
        name: tf.ragged.constant(
            [y[name][i][rows[i]].tolist() for i in range(9)],
            ragged_rank=1,
            dtype=y[name].dtype,
            inner_shape=shape,
        )
        for name, shape in (("boxes", (4,)), ("classes", ()))
    }
    matcher = Matcher(toys.ANCHORS)
    expected = call(matcher, y)
    for graph in (matcher, tf.function(matcher)):
        found = graph(ragged)
        for name in ("boxes", "classes"):
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=1e-6)
    both = {
        "boxes": tf.ragged.constant([[[0.0, 0.0, 0.5, 1.0]], []], dtype=tf.float32),
        "classes": tf.ragged.constant([[4.0], []], dtype=tf.float32),
    }
    assert Matcher(LEFT_RIGHT)(both)["classes"].numpy().tolist() == [[5, 0], [0, 0]]
    none = {name: value[:0] for name, value in ragged.items()}
    assert matcher(none)["classes"].shape[1] == toys.PRIORS
    empty = {
        "boxes": tf.RaggedTensor.from_row_lengths(tf.zeros((0, 4)), [0, 0]),
        "classes": tf.RaggedTensor.from_row_lengths(tf.zeros((0,), tf.int32), [0, 0]),
    }
    assert not matcher(empty)["classes"].numpy().any()


def test_one_image_without_a_batch():
    y = toys.objects(5, 3, seed=4)
    matcher = Matcher(toys.ANCHORS, ignore_from=0.4)
    expected = call(matcher, y)
    for i in range(5):
        found = call(matcher, {name: value[i] for name, value in y.items()})
        for name in ("boxes", "classes"):
            np.testing.assert_array_equal(found[name], expected[name][i])


@pytest.mark.parametrize("batched", [False, True])
def test_inside_a_dataset_shapes_are_static(batched):
    y = toys.objects(6, 3)
    matcher = Matcher(toys.ANCHORS)
    expected = call(matcher, y)
    dataset = tf.data.Dataset.from_tensor_slices((toys.images(6), y))
    if batched:
        dataset = dataset.batch(2, drop_remainder=True)
    dataset = dataset.map(lambda x, y: (x, matcher(y)))
    if not batched:
        dataset = dataset.batch(2, drop_remainder=True)
    specs = dataset.element_spec[1]
    assert specs["boxes"] == tf.TensorSpec((2, toys.PRIORS, 4), tf.float32)
    assert specs["classes"] == tf.TensorSpec((2, toys.PRIORS), tf.int32)
    found = np.concatenate([target["classes"] for _, target in dataset])
    np.testing.assert_array_equal(found, expected["classes"])


def test_a_prior_as_object_has_no_offset():
    corners = to_corners(tf.constant(toys.ANCHORS.priors))
    y = {"boxes": corners, "classes": tf.range(toys.PRIORS)}
    found = call(Matcher(toys.ANCHORS, 1.0), y)
    assert found["classes"].tolist() == list(range(1, toys.PRIORS + 1))
    np.testing.assert_allclose(found["boxes"], 0.0, atol=1e-5)


def test_padding_of_objects():
    boxes, classes = objects({"boxes": [[0, 0, 1, 1]], "classes": [2.0]})
    assert boxes.dtype == tf.float32 and classes.dtype == tf.int32
    boxes, classes = objects(no_objects(3, 0))
    assert (boxes.numpy() == PADDING).all() and boxes.shape == (3, 1, 4)
    assert (classes.numpy() == PADDING).all() and classes.shape == (3, 1)


@pytest.mark.parametrize("anchors", [toys.ANCHORS, LEFT_RIGHT])
def test_configuration(anchors):
    matcher = Matcher(anchors, np.float32(0.75), np.float32(0.25), np.float32([1, 1, 2, 2]))
    saved = json.loads(json.dumps(keras.saving.serialize_keras_object(matcher)))
    again = keras.saving.deserialize_keras_object(saved)
    assert type(again) is Matcher and again.get_config() == matcher.get_config()
    assert type(again.anchors) is type(anchors)
    y = toys.objects(4, 3)
    for name in ("boxes", "classes"):
        np.testing.assert_array_equal(again(y)[name], matcher(y)[name])


@pytest.mark.parametrize(
    "change, error, words",
    [
        ({"anchors": [[0, 0, 1, 1]]}, TypeError, "`priors`.*Anchors"),
        ({"threshold": 0}, ValueError, r"`threshold`.*\(0, 1\], received 0"),
        ({"threshold": 1.5}, ValueError, "`threshold`.*between 0 and 1.*1.5"),
        ({"threshold": "0.5"}, TypeError, "`threshold`.*'0.5'"),
        ({"threshold": None}, TypeError, "`threshold`.*None"),
        ({"ignore_from": 0.6}, ValueError, r"`ignore_from`.*\(0, 0.5\].*received 0.6"),
        ({"ignore_from": 0.0}, ValueError, "`ignore_from`.*received 0.0"),
        ({"ignore_from": "a"}, TypeError, "`ignore_from`.*'a'"),
        ({"variances": 0.1}, ValueError, "`variances`.*four numbers.*0.1"),
    ],
)
def test_bad_arguments(change, error, words):
    with pytest.raises(error, match=words):
        Matcher(**{"anchors": toys.ANCHORS, **change})


@pytest.mark.parametrize(
    "y, words",
    [
        (None, "`y`.*'boxes'.*'classes'.*None"),
        (np.zeros((1, 3, 4)), r"`y`.*\(1, 3, 4\)"),
        ({"boxes": np.zeros((1, 3, 4))}, "`y`.*'classes'"),
        ({"box": 0, "classification": 0}, "`y`.*already matched"),
        (no_objects(1, 3) | {"boxes": np.zeros((1, 2, 4))}, r"`y`.*\(1, 2, 4\).*\(1, 3\).*padded"),
        (no_objects(1, 3) | {"boxes": np.zeros((1, 3, 5))}, r"`y`.*\(1, 3, 5\)"),
        (no_objects(1, 3) | {"classes": np.zeros(3)}, r"`y`.*\(1, 3, 4\).*\(3,\)"),
        (no_objects(1, 2, 3), r"`y`.*\(1, 2, 3, 4\)"),
    ],
)
def test_bad_objects(y, words):
    with pytest.raises(ValueError, match=words):
        Matcher(toys.ANCHORS)(y)
