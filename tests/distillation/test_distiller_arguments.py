"""What is refused before a step is traced, rather than by Keras in it or after an epoch."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from toys import CROSSENTROPY, data, net

import tfkd

X, Y = data()


def make(*args, **kwargs):
    distiller = tfkd.Distiller(net(seed=1), net(seed=2), tfkd.losses.LogitsDistillation(2.0))
    distiller.compile("sgd", *(args or (CROSSENTROPY,)), **kwargs)
    return distiller


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (
            ("sparse_crossentropy",),
            "`loss`.*'sparse_crossentropy'.*sparse_categorical",
        ),
        (("mse", ["acuracy"]), "`metrics`.*'acuracy'.*Did you mean 'accuracy'"),
        (({"score": "mse"},), "`loss`.*'score'.*'scores'"),
        (("mse", {"other": ["mae"]}), "`metrics`.*'other'.*'scores'"),
    ],
)
def test_unknown_names_are_refused_by_compile(args, words):
    with pytest.raises(ValueError, match=words):
        make(*args)


def test_every_name_of_keras_is_taken():
    make("mse", ["accuracy", "acc", "crossentropy", "mae", "KLDivergence", "MeanAbsoluteError"])
    make({"scores": "huber"}, {"scores": ["ce", keras.metrics.MeanSquaredError(), len]})


@pytest.mark.parametrize(
    ("held_out", "words"),
    [
        ((X[:, :3], Y), r"shape \(5,\).*shape \(8, 3\)"),
        ((X, Y[:3]), r"same number of examples.*\[3, 8\]"),
        ((X, Y, np.ones(2)), "same number of examples"),
    ],
)
def test_validation_data_are_checked_before_the_first_epoch(held_out, words):
    distiller = make()
    with pytest.raises(ValueError, match=f"`validation_data`.*{words}"):
        distiller.fit(X, Y, validation_data=held_out, verbose=0)
    assert int(distiller.optimizer.iterations) == 0


@pytest.mark.parametrize("as_data_set", [False, True])
@pytest.mark.parametrize("y", [np.eye(4)[Y], Y])
def test_one_hot_rows_have_the_classes_of_the_student(y, as_data_set):
    distiller = make(keras.losses.CategoricalCrossentropy(from_logits=True))
    given = (tf.data.Dataset.from_tensor_slices((X, y)).batch(4),) if as_data_set else (X, y)
    with pytest.raises(ValueError, match="`y`: expected one-hot rows of 3 classes"):
        distiller.fit(*given, verbose=0)
    distiller.fit(X, np.eye(3)[Y], verbose=0)


SPARSE = {
    "instance": CROSSENTROPY,
    "name": "sparse_categorical_crossentropy",
    "function": keras.losses.sparse_categorical_crossentropy,
}


@pytest.mark.parametrize("loss", SPARSE)
def test_one_hot_rows_are_refused_where_the_loss_takes_class_numbers(loss):
    distiller, rows = make(SPARSE[loss]), np.eye(3)[Y]
    data_set = tf.data.Dataset.from_tensor_slices((X, rows)).batch(4)
    for given in ((X, rows), (data_set,)):
        for call in (distiller.fit, distiller.evaluate):
            with pytest.raises(ValueError, match="`y`: expected class numbers.*argmax") as told:
                call(*given, verbose=0)
            assert "in user code" not in str(told.value)
    with pytest.raises(ValueError, match="`y`: expected class numbers"):
        make(SPARSE[loss]).train_on_batch(X, rows)
    with pytest.raises(ValueError, match="without the axis of 2.*one number"):
        distiller.fit(X, np.zeros((8, 2)), verbose=0)
    for y in (Y, Y[:, None]):
        distiller.fit(X, y, verbose=0)


def two(form):
    x = keras.Input((5,))
    return keras.Model(x, form({name: keras.layers.Dense(3, name=name)(x) for name in "ab"}))


def listed(outputs):
    return list(outputs.values())


@pytest.mark.parametrize("form", [dict, listed])
def test_one_hot_rows_of_one_of_several_outputs_are_refused(form):
    distiller = tfkd.Distiller(two(form), two(form), tfkd.losses.LogitsDistillation(2.0))
    both = {"a": keras.losses.CategoricalCrossentropy(from_logits=True), "b": CROSSENTROPY}
    distiller.compile("sgd", both)
    rows = np.eye(3)[Y]
    with pytest.raises(ValueError, match="`y`: expected class numbers") as told:
        distiller.fit(X, {"a": rows, "b": rows}, verbose=0)
    assert "in user code" not in str(told.value)
    right = tfkd.Distiller(two(form), two(form), tfkd.losses.LogitsDistillation(2.0))
    right.compile("sgd", both)
    right.fit(X, {"a": rows, "b": Y}, verbose=0)


def test_class_numbers_of_pixels_are_no_one_hot_rows():
    def net(seed):
        x = keras.Input((3, 3, 2))
        return keras.Model(x, keras.layers.Conv2D(3, 1)(x))

    images, classes = np.ones((4, 3, 3, 2), np.float32), np.zeros((4, 3, 3), np.int32)
    distiller = tfkd.Distiller(net(1), net(2), tfkd.losses.LogitsDistillation(2.0))
    distiller.compile("sgd", CROSSENTROPY)
    distiller.fit(images, classes, verbose=0)
    with pytest.raises(ValueError, match="`y`: expected class numbers"):
        distiller.fit(images, np.eye(3)[classes], verbose=0)


@pytest.mark.parametrize("forms", [(dict, listed), (listed, dict)])
def test_outputs_of_other_structures_are_refused_before_the_first_step(forms, tmp_path):
    teacher, student = map(two, forms)
    cache = tfkd.TeacherCache.build(tmp_path, teacher, X, progress=False)
    for one in (teacher, [two(forms[1]), teacher], cache):
        for term in (tfkd.losses.LogitsDistillation(2.0), tfkd.losses.FeatureDistillation("mse")):
            with pytest.raises(ValueError, match="outputs must have the same structure") as told:
                tfkd.Distiller(one, student, term)
            assert "in user code" not in str(told.value)


def test_files_that_can_not_be_written_are_refused_before_training(tmp_path):
    (tmp_path / "file").write_text("")
    inside = str(tmp_path / "file" / "a.keras")
    for callback, name in (
        (keras.callbacks.ModelCheckpoint(inside), "ModelCheckpoint.filepath"),
        (tfkd.callbacks.StudentCheckpoint(inside), "StudentCheckpoint.filepath"),
        (keras.callbacks.BackupAndRestore(inside), "BackupAndRestore.backup_dir"),
        (tfkd.callbacks.TensorBoard(inside), "TensorBoard.log_dir"),
    ):
        with pytest.raises(ValueError, match=f"`{name}`.*file is a file"):
            make().fit(X, Y, verbose=0, callbacks=[callback])
    deep = tfkd.callbacks.StudentCheckpoint(tmp_path / "new" / "folder" / "{epoch}.keras")
    make().fit(X, Y, verbose=0, callbacks=[deep])
    assert (tmp_path / "new" / "folder" / "1.keras").exists()
