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
