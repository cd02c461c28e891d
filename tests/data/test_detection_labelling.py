"""Labels that a teacher writes once, against what it was made to see."""

import numpy as np
import pytest
import tensorflow as tf

from tfkd import data, detection

# Two priors, left and right half; the teacher sees an object where the picture is bright.
PRIORS = np.array([[0.25, 0.5, 0.5, 1.0], [0.75, 0.5, 0.5, 1.0]], "float32")
LEFT, RIGHT = [0.0, 0.0, 0.5, 1.0], [0.5, 0.0, 1.0, 1.0]
DARK, BRIGHT = 0, 255


def teacher(images):
    """Class 1 in every bright half, from pixels scaled to −1..1."""
    halves = tf.stack(
        [tf.reduce_mean(images[:, :, :4], (1, 2, 3)), tf.reduce_mean(images[:, :, 4:], (1, 2, 3))],
        1,
    )
    nothing = tf.zeros_like(halves)
    logits = tf.stack([nothing, nothing - 9.0, 20.0 * halves], -1)
    return {"boxes": tf.zeros((tf.shape(images)[0], 2, 4)), "classes": logits}


def scenes():
    """Left bright and labelled; both bright, one labelled; right bright, unlabelled; dark."""
    images = np.full((4, 8, 8, 3), DARK, "uint8")
    images[0, :, :4] = images[1] = images[2, :, 4:] = BRIGHT
    boxes = np.full((4, 2, 4), -1, "float32")
    boxes[0, 0] = boxes[1, 0] = LEFT
    classes = np.array([[0, -1], [0, -1], [-2, -2], [-1, -1]], "int32")
    test = {"x_test": images, "boxes_test": boxes, "classes_test": np.full_like(classes, -1)}
    test["boxes_test"] = np.full_like(boxes, -1)
    return data.DetectionDataset(images, boxes, classes, **test, class_names=("a", "b"))


def objects(dataset):
    return [
        sorted(
            (kind, *np.round(box, 4).tolist()) for kind, box in zip(k, b, strict=True) if kind != -1
        )
        for k, b in zip(dataset.classes_train.tolist(), dataset.boxes_train, strict=True)
    ]


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("unlabelled", [[(0, *LEFT)], [(0, *LEFT)], [(1, *RIGHT)], []]),
        ("missing", [[(0, *LEFT)], [(0, *LEFT), (1, *RIGHT)], [(1, *RIGHT)], []]),
        ("everywhere", [[(1, *LEFT)], [(1, *LEFT), (1, *RIGHT)], [(1, *RIGHT)], []]),
    ],
)
def test_boxes_are_added_where_they_are_wanted(where, expected):
    boxes = detection.TeacherBoxes(PRIORS, where=where, max_boxes=4)
    # Three images a batch: the last one is smaller.
    labelled = data.teacher_labels(scenes(), teacher, boxes, batch_size=3)
    assert objects(labelled) == expected
    assert labelled.unlabelled == 0
    assert labelled.boxes_train.shape[1] == 2  # not the 4 that the teacher might have seen
    np.testing.assert_array_equal(labelled.classes_test, scenes().classes_test)


def test_a_score_at_the_threshold_is_needed():
    boxes = detection.TeacherBoxes(PRIORS, where="unlabelled", score_threshold=1.0)
    assert objects(data.teacher_labels(scenes(), teacher, boxes))[2] == []


def test_what_is_no_data_set_or_teacher_is_refused():
    boxes = detection.TeacherBoxes(PRIORS)
    with pytest.raises(TypeError, match="`dataset`: expected a DetectionDataset"):
        data.teacher_labels(np.zeros((2, 8, 8, 3)), teacher, boxes)
    with pytest.raises(TypeError, match="`teacher`: expected a callable"):
        data.teacher_labels(scenes(), "teacher.keras", boxes)
    with pytest.raises(TypeError, match="`boxes`: expected tfkd.detection.TeacherBoxes"):
        data.teacher_labels(scenes(), teacher, PRIORS)
