"""Labels that a teacher writes once, against what it was made to see."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from tfkd import data, detection, losses

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


def teacher_of(scores):
    """A teacher that has these scores (2, classes) for the halves of every picture."""
    logits = np.log(np.float32([[1 - sum(row), *row] for row in scores]))

    def outputs(images):
        count = tf.shape(images)[0]
        return {"boxes": tf.zeros((count, 2, 4)), "classes": tf.tile(logits[None], (count, 1, 1))}

    return outputs


def test_thresholds_are_fitted_to_the_labelled_images():
    """Three labelled images have two objects of class 0: the other one is expected to have one."""
    faint = teacher_of([[0.4, 0.01], [0.2, 0.3]])
    fitted = data.teacher_labels(scenes(), faint, detection.TeacherBoxes(PRIORS))
    assert objects(fitted) == [[(0, *LEFT)], [(0, *LEFT)], [(0, *LEFT)], []]
    # Class 1 has no label: its threshold stays 0.5. One that is given is kept.
    fixed = data.teacher_labels(scenes(), faint, detection.TeacherBoxes(PRIORS, 0.5))
    assert objects(fixed)[2] == []
    # Where labels are missing they can't say how many objects there are.
    missing = data.teacher_labels(scenes(), faint, detection.TeacherBoxes(PRIORS, where="missing"))
    assert objects(missing) == objects(fixed)


def test_without_labels_the_threshold_is_a_half():
    bare = scenes()
    nothing = np.full_like(bare.classes_train, detection.UNLABELLED)
    bare = dataclasses.replace(bare, classes_train=nothing)
    sure = teacher_of([[0.4, 0.01], [0.2, 0.6]])
    found = data.teacher_labels(bare, sure, detection.TeacherBoxes(PRIORS))
    assert objects(found) == [[(1, *RIGHT)]] * 4


def test_doubtful_detections_are_objects_to_ignore():
    doubtful = teacher_of([[0.4, 0.01], [0.2, 0.6]])
    boxes = detection.TeacherBoxes(PRIORS, 0.5, ignore_from=0.3)
    labelled = data.teacher_labels(scenes(), doubtful, boxes)
    assert objects(labelled) == [
        [(0, *LEFT)],
        [(0, *LEFT)],
        [(detection.IGNORED, *LEFT), (1, *RIGHT)],
        [],
    ]
    assert labelled.unlabelled == 0 and labelled.object_counts().tolist() == [1, 1, 1, 0]
    # Trained on them, a model learns the right half as an object, and nothing of the left one.
    batch = data.detection_eval_batches(labelled, 4, "train")
    (_, y), matcher = next(iter(batch)), detection.Matcher(PRIORS)
    assert matcher(y)["classes"].numpy().tolist() == [[1, 0], [1, 0], [-1, 2], [0, 0]]


def test_a_student_learns_nothing_where_the_teacher_is_in_doubt():
    """Through `fit`: the biases that are the outputs of the left half stay 0."""
    doubtful = teacher_of([[0.4, 0.01], [0.2, 0.6]])
    bare = scenes()
    bare = dataclasses.replace(
        bare, classes_train=np.full_like(bare.classes_train, detection.UNLABELLED)
    )
    boxes = detection.TeacherBoxes(PRIORS, 0.5, ignore_from=0.3)
    labelled = data.teacher_labels(bare, doubtful, boxes)
    image = keras.Input((8, 8, 3))
    zeros = keras.layers.Flatten()(image) * 0.0
    rows = keras.layers.Reshape((2, 7))(keras.layers.Dense(14, name="bias")(zeros))
    student = keras.Model(image, {"boxes": rows[..., :4], "classes": rows[..., 4:]})
    student.compile(keras.optimizers.SGD(0.1), loss=losses.MultiBoxLoss(detection.Matcher(PRIORS)))
    student.fit(data.detection_batches(labelled, 4), steps_per_epoch=3, verbose=0)
    left, right = student.get_layer("bias").bias.numpy().reshape(2, 7)
    assert not left.any() and right[6] > 0 and (right[4:6] < 0).all()


@pytest.mark.parametrize(("share", "copies"), [(0.0, 1), (0.5, 1), (0.9, 3), (0.95, 6)])
def test_labelled_images_are_repeated(share, copies):
    """Three of four are labelled: with 3 copies they are 9 of 10, with 6 about 19 of 20."""
    boxes = detection.TeacherBoxes(PRIORS, 0.5)
    once = data.teacher_labels(scenes(), teacher, boxes)
    found = data.teacher_labels(scenes(), teacher, boxes, labelled_share=share)
    rows = [0, 1, 2, 3] + [0, 1, 3] * (copies - 1)
    np.testing.assert_array_equal(found.x_train, once.x_train[rows])
    np.testing.assert_array_equal(found.boxes_train, once.boxes_train[rows])
    np.testing.assert_array_equal(found.classes_train, once.classes_train[rows])


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
    with pytest.raises(ValueError, match="`labelled_share`: expected a share below 1.*1.0"):
        data.teacher_labels(scenes(), teacher, boxes, labelled_share=1.0)
