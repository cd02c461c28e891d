"""The warning when a student is ahead of its teacher, through `fit`."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import tf_keras as keras
from toys import CROSSENTROPY, data, net

import tfkd


def fit(teacher, student, x, y, check, epochs=1, rate=0.0):
    distiller = tfkd.Distiller(teacher, student, tfkd.losses.LogitsDistillation())
    distiller.compile(keras.optimizers.SGD(rate), CROSSENTROPY)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        history = distiller.fit(x, y, epochs=epochs, verbose=0, callbacks=[check]).history
    return history, [str(w.message) for w in caught if "TeacherCheck" in str(w.message)]


def share(y, model, x):
    return np.mean(model.predict(x, verbose=0).argmax(-1) == y)


def test_scores_are_accuracies_and_the_better_student_is_reported_once():
    x, _ = data(40)
    teacher, student = net(seed=1), net(seed=2)
    y = student.predict(x, verbose=0).argmax(-1)  # the student is always right
    history, found = fit(teacher, student, x, y, tfkd.callbacks.TeacherCheck((x, y)), epochs=3)
    assert history["student_score"] == [1.0] * 3
    assert history["teacher_score"] == pytest.approx([share(y, teacher, x)] * 3)
    assert len(found) == 1
    assert "after epoch 1 the student is better than its teacher, 1 against" in found[0]


def test_no_word_while_the_teacher_is_ahead_or_within_the_margin():
    x, _ = data(40)
    teacher, student = net(seed=1), net(seed=2)
    right_teacher = teacher.predict(x, verbose=0).argmax(-1)
    check = tfkd.callbacks.TeacherCheck((x, right_teacher))
    assert fit(teacher, student, x, right_teacher, check)[1] == []
    y = student.predict(x, verbose=0).argmax(-1)
    assert fit(teacher, student, x, y, tfkd.callbacks.TeacherCheck((x, y), margin=1.0))[1] == []


def test_one_hot_labels_small_batches_and_every_second_epoch():
    x, y = data(40)
    teacher, student = net(seed=1), net(seed=2)
    check = tfkd.callbacks.TeacherCheck((x, np.eye(3)[y]), batch_size=7, every=2)
    history, _ = fit(teacher, student, x, y, check, epochs=2)
    assert history["teacher_score"] == pytest.approx([share(y, teacher, x)])


def test_a_score_of_ones_own():
    x, y = data(40)
    teacher, student = net(seed=1), net(seed=2)

    def score(y, outputs):
        return -((outputs[:, 0] - y) ** 2)

    history, _ = fit(teacher, student, x, y, tfkd.callbacks.TeacherCheck((x, y), score))
    expected = -np.mean((teacher.predict(x, verbose=0)[:, 0] - y) ** 2)
    assert history["teacher_score"] == pytest.approx([expected], rel=1e-5)


def test_one_output_is_right_by_its_sign_or_half():
    from tfkd.callbacks.teacher_check import right

    y = np.array([0, 1, 1])
    np.testing.assert_array_equal(right(y, np.array([[-1.0], [2.0], [-3.0]]))[:, 0], [1, 1, 0])
    np.testing.assert_array_equal(right(y, np.array([[0.4], [0.6], [0.2]]))[:, 0], [1, 1, 0])


def test_labels_of_other_kinds():
    from tfkd.callbacks.teacher_check import right

    y = np.array([[1, 1], [0, 1], [0, 0]])
    found = right(y, np.array([[0.9, 0.8], [0.2, 0.3], [0.1, 0.2]]))
    np.testing.assert_array_equal(found, [1, 0, 1])
    found = right(np.array([[2.5, 1.0], [0.5, -1.0]]), np.array([[2.0, 1.0], [0.5, 1.0]]))
    np.testing.assert_array_equal(found, [-0.25, -1.0])


def test_bad_arguments():
    x, y = data(8)
    with pytest.raises(ValueError, match="`data`: expected as many examples"):
        tfkd.callbacks.TeacherCheck((x, y[:3]))
    with pytest.raises(TypeError, match="`data`: expected"):
        tfkd.callbacks.TeacherCheck([1, 2])
    with pytest.raises(ValueError, match="`margin`"):
        tfkd.callbacks.TeacherCheck((x, y), margin=-1)
    model = net()
    model.compile("sgd", CROSSENTROPY)
    with pytest.raises(ValueError, match=r"expected to be given to the `fit` of a tfkd.Distiller"):
        model.fit(x, y, verbose=0, callbacks=[tfkd.callbacks.TeacherCheck((x, y))])
