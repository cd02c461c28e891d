"""The teacher's detections as objects, against loops in NumPy."""

from __future__ import annotations

import json

import detection_toys as toys
import multibox_reference as reference
import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from tfkd.detection import (
    IGNORED,
    PADDING,
    UNLABELLED,
    Anchors,
    Matcher,
    TeacherBoxes,
    fit_thresholds,
)

WHERE = ("unlabelled", "missing", "everywhere")
# Not alike, so that few detections are: order and suppression are told apart.
ANCHORS = Anchors([2], sizes=[[(0.5, 0.45), (0.8, 0.3)]])


def detect(boxes, scores, priors, threshold, iou_threshold, limit, background=True):
    """Detections [(class, score, box)] of one image: greedy suppression in each class."""
    pairs = []
    for p, z in enumerate(scores):
        if background:
            chances = np.exp(reference.log_softmax(z))[1:]
        else:
            chances = np.exp(reference.log_sigmoid(z))
        box = np.clip(reference.decode(boxes[p], priors[p]), 0, 1)
        has_area = box[2] > box[0] and box[3] > box[1]
        pairs += [(-c, k, box) for k, c in enumerate(chances) if c > threshold and has_area]
    kept = []
    for negative, kind, box in sorted(pairs, key=lambda pair: pair[0]):
        if all(k != kind or reference.iou(box, b) <= iou_threshold for k, _, b in kept):
            kept.append((kind, -negative, box))
    return kept[:limit]


def by_loops(y, teacher, where, overlap, limits, **options):
    """For each image the list of its objects."""
    found = []
    for i, kinds in enumerate(y["classes"]):
        seen = detect(np.float64(teacher["boxes"][i]), teacher["classes"][i], **options)
        seen = [(k if score > limits[k] else IGNORED, box) for k, score, box in seen]
        pairs = zip(kinds, y["boxes"][i], strict=True)
        labelled = [(k, b) for k, b in pairs if k >= 0 or k == IGNORED]
        unlabelled = UNLABELLED in kinds
        if where == "everywhere":
            labelled = []
        elif where == "missing" and not unlabelled:
            seen = [
                (kind, box)
                for kind, box in seen
                if all(reference.iou(box, b) < overlap for _, b in labelled)
            ]
        elif not unlabelled:
            seen = []
        found.append(([] if unlabelled else labelled) + seen)
    return found


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize("ignored", [False, True])
def test_objects(where, background, ignored):
    """2,004 images in all; thresholds of both classes, and detections to ignore from 0.3 on."""
    count = 167
    y = toys.objects(count, 3, seed=1)
    if ignored:
        y["classes"][1::3, 0][y["classes"][1::3, 0] >= 0] = IGNORED
    y["classes"][::3] = UNLABELLED
    teacher = toys.outputs(count, 2, scores=3 if background else 2, scale=2.0)
    options = {"iou_threshold": 0.3, "background": background}
    limits, low = ((0.7, 0.4), 0.3) if ignored else ((0.4, 0.4), None)
    thresholds = limits if ignored else 0.4
    add = TeacherBoxes(ANCHORS, thresholds, where, 0.4, max_boxes=6, ignore_from=low, **options)
    got = {name: value.numpy() for name, value in add(y, teacher).items()}
    assert got["boxes"].shape == (count, 3 + 6, 4) and got["classes"].shape == (count, 3 + 6)
    assert got["classes"].dtype == np.int32 and got["boxes"].dtype == np.float32
    priors = np.float64(ANCHORS.priors)
    options |= {"priors": priors, "threshold": low or 0.4, "limit": 6}
    expected = by_loops(y, teacher, where, 0.4, limits, **options)
    seen = 0
    for i in range(count):
        real = got["classes"][i] != PADDING
        kinds = [int(kind) for kind, _ in expected[i]]
        assert got["classes"][i][real].tolist() == kinds, i
        boxes = np.reshape([box for _, box in expected[i]], (-1, 4))
        np.testing.assert_allclose(got["boxes"][i][real], boxes, atol=1e-5)
        assert (got["classes"][i][~real] == PADDING).all()
        seen += len(kinds)
    assert seen > count


def test_thresholds_are_lowered_where_too_little_is_found():
    found = {
        "confidence": np.array([[0.9, 0.8, 0.7, 0.3], [0.6, 0.45, 0.25, 0.05]]),
        "classes": np.array([[0, 1, 0, 1], [0, 1, 1, 2]]),
    }
    # Class 0 has three above 0.5; of class 1 the third is 0.3, and the fourth 0.25; of class
    # 2 there are not enough above 0.1, and of class 3 none are expected.
    fitted = fit_thresholds(found, [1.9, 3.2, 5, 0])
    np.testing.assert_allclose(fitted, [0.5, 0.275, 0.1, 0.5])
    assert fit_thresholds(found, [4, 0, 0, 0])[0] == pytest.approx(0.3)  # half of 0.6 and 0


def test_a_labelled_object_of_any_class_is_not_missing():
    priors = np.float32([[0.25, 0.5, 0.5, 1.0], [0.75, 0.5, 0.5, 1.0]])
    y = {"boxes": np.float32([[[0, 0, 0.5, 1]]]), "classes": np.int32([[1]])}
    teacher = {
        "boxes": np.zeros((1, 2, 4), np.float32),
        "classes": np.float32([[[0, 9, 0], [0, 9, 0]]]),
    }
    found = TeacherBoxes(priors, where="missing", max_boxes=2)(y, teacher)
    assert sorted(found["classes"][0].numpy().tolist()) == [-1, 0, 1]
    everywhere = TeacherBoxes(priors, where="everywhere", max_boxes=2)(y, teacher)
    assert everywhere["classes"].numpy().tolist() == [[-1, 0, 0]]
    labelled = TeacherBoxes(priors, max_boxes=2)(y, teacher)
    assert labelled["classes"].numpy().tolist() == [[1, -1, -1]]


def test_an_image_without_labels_is_learned_as_one_with_the_teachers():
    y = toys.objects(4, 2, seed=1)
    teacher = toys.outputs(4, 3, scale=3.0)
    matcher = Matcher(toys.ANCHORS)
    everywhere = matcher(TeacherBoxes(toys.ANCHORS, where="everywhere")(y, teacher))
    y["classes"][:] = UNLABELLED
    assert (matcher(y)["classes"].numpy() == -1).all()
    for where in ("unlabelled", "missing"):
        found = matcher(TeacherBoxes(toys.ANCHORS, where=where)(y, teacher))
        np.testing.assert_array_equal(found["classes"], everywhere["classes"])
        np.testing.assert_array_equal(found["boxes"], everywhere["boxes"])


def test_a_teacher_that_sees_nothing_leaves_the_labels():
    y = toys.objects(4, 2, seed=1)
    y["classes"][0] = UNLABELLED
    teacher = {
        "boxes": np.zeros((4, 8, 4)),
        "classes": np.float32([9.0, 0, 0]) * np.ones((4, 8, 3)),
    }
    found = TeacherBoxes(toys.ANCHORS, max_boxes=3, where="missing")(y, teacher)
    expected = np.where(y["classes"] == UNLABELLED, PADDING, y["classes"])
    np.testing.assert_array_equal(found["classes"][:, :2], expected)
    assert (found["classes"].numpy()[:, 2:] == PADDING).all()


@pytest.mark.parametrize("where", WHERE)
def test_ragged_objects_and_none_at_all(where):
    add = TeacherBoxes(toys.ANCHORS, 0.4, where, max_boxes=4)
    teacher = toys.outputs(3, 1)
    none = {"boxes": np.zeros((3, 0, 4), np.float32), "classes": np.zeros((3, 0), np.int32)}
    assert add(none, teacher)["classes"].shape == (3, 1 + 4)
    ragged = {
        "boxes": tf.RaggedTensor.from_row_lengths(tf.constant([[0.0, 0, 0.5, 0.5]]), [0, 1, 0]),
        "classes": tf.RaggedTensor.from_row_lengths(tf.constant([1]), [0, 1, 0]),
    }
    dense = {name: value.to_tensor(-1) for name, value in ragged.items()}
    expected = add(dense, teacher)
    found = add(ragged, teacher)
    for name in ("boxes", "classes"):
        np.testing.assert_array_equal(found[name], expected[name])


def test_no_gradient_flows_into_the_teacher():
    teacher = {name: tf.constant(value) for name, value in toys.outputs(2, 1).items()}
    with tf.GradientTape() as tape:
        tape.watch(teacher)
        found = TeacherBoxes(toys.ANCHORS, where="everywhere")(toys.objects(2), teacher)
        value = tf.reduce_sum(found["boxes"])
    assert set(tape.gradient(value, teacher).values()) == {None}


@pytest.mark.parametrize("anchors", [toys.ANCHORS, toys.ANCHORS.priors])
@pytest.mark.parametrize("threshold", [np.float32(0.25), (0.25, np.float32(0.5)), None])
def test_configuration(anchors, threshold):
    add = TeacherBoxes(
        anchors,
        threshold,
        "missing",
        np.float32(0.5),
        0.75,
        3,
        False,
        "b",
        "c",
        (1, 1, 2, 2),
        ignore_from=np.float32(0.125),
    )
    saved = json.loads(json.dumps(keras.saving.serialize_keras_object(add)))
    again = keras.saving.deserialize_keras_object(saved)
    assert type(again) is TeacherBoxes and again.get_config() == add.get_config()
    y, teacher = toys.objects(2), toys.outputs(2, scores=2)
    teacher = {"b": teacher["boxes"], "c": teacher["classes"]}
    for a, b in zip(add(y, teacher).values(), again(y, teacher).values(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "change, error, words",
    [
        ({"anchors": "x"}, TypeError, "`priors`.*Anchors"),
        ({"where": "unlabeled"}, ValueError, "`where`.*Did you mean 'unlabelled'"),
        ({"score_threshold": 1.5}, ValueError, "`score_threshold`.*between 0 and 1.*1.5"),
        ({"score_threshold": [0.5, 2]}, ValueError, "`score_threshold`.*between 0 and 1.*2"),
        ({"score_threshold": []}, TypeError, "`score_threshold`"),
        ({"ignore_from": -1}, ValueError, "`ignore_from`.*between 0 and 1.*-1"),
        ({"overlap": -0.1}, ValueError, "`overlap`.*between 0 and 1"),
        ({"iou_threshold": "a"}, TypeError, "`iou_threshold`.*'a'"),
        ({"max_boxes": 0}, ValueError, "`max_boxes`.*at least 1.*0"),
        ({"max_boxes": 2.5}, TypeError, "`max_boxes`.*integer"),
        ({"background": 1}, TypeError, "`background`.*True or False.*1"),
        ({"boxes": 3}, TypeError, "`boxes`.*name of an output"),
        ({"classes": None}, TypeError, "`classes`.*name of an output"),
        ({"variances": (1, 2)}, ValueError, "`variances`.*four"),
    ],
)
def test_bad_arguments(change, error, words):
    with pytest.raises(error, match=words):
        TeacherBoxes(**{"anchors": toys.ANCHORS, **change})


def test_a_teacher_of_other_priors_or_outputs():
    add = TeacherBoxes(toys.ANCHORS)
    with pytest.raises(ValueError, match=r"outputs\['boxes'\].*8 priors.*\(2, 9, 4\).*anchors"):
        add(toys.objects(2), toys.outputs(2, priors=9))
    with pytest.raises(ValueError, match="`boxes`.*one of `outputs`.*'boxes'"):
        add(toys.objects(2), {"box": 1, "classification": 2})
    with pytest.raises(ValueError, match="`y`"):
        add(None, toys.outputs(2))
    three = TeacherBoxes(toys.ANCHORS, (0.5, 0.5, 0.5))
    with pytest.raises(ValueError, match="`score_threshold`.*each of the 2 classes.*0.5, 0.5, 0.5"):
        three(toys.objects(2), toys.outputs(2))
