"""Keras's BackupAndRestore with a Distiller: killed, started again, and where it differs."""

from __future__ import annotations

import functools
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import tf_keras as keras
import toys
from forks import Fork

import tfkd

COUNT, BATCH, EPOCHS = 48, 8, 4
STEPS = COUNT // BATCH


class Dies(keras.callbacks.Callback):
    """Ends the process after so many steps, without a word; or at an epoch's end."""

    def __init__(self, step):
        super().__init__()
        self.left = step

    def on_train_batch_end(self, batch, logs=None):
        self.left -= 1
        if not self.left and batch < STEPS - 1:
            os._exit(9)

    def on_epoch_end(self, epoch, logs=None):
        if self.left <= 0:  # behind the backup: it is written
            os._exit(9)


def train(folder, start_step=0, die_after=None, epochs=EPOCHS):
    """Trains from the backup on; the student's and the projector's weights."""
    x, y = toys.data(COUNT)
    teacher = toys.net(8, seed=1)
    cache = tfkd.TeacherCache.build(
        Path(folder) / "cache", teacher, x, layers="hidden", progress=False
    )
    keras.utils.set_random_seed(4)
    hint = tfkd.losses.FeatureDistillation(teacher_layer_name="hidden", student_layer_name="hidden")
    kinds = [tfkd.losses.LogitsDistillation(2.0), hint]
    distiller = tfkd.Distiller(cache, toys.net(4), kinds, student_loss_weight=0.3)
    distiller.compile(keras.optimizers.Adam(0.01), toys.CROSSENTROPY)
    callbacks = [keras.callbacks.BackupAndRestore(Path(folder) / "backup", save_freq="epoch")]
    if die_after is not None:
        callbacks.append(Dies(die_after))
    data = cache.batches(x, y, BATCH, seed=3, start_step=start_step)
    distiller.fit(data, steps_per_epoch=STEPS, epochs=epochs, verbose=0, callbacks=callbacks)
    assert int(distiller.optimizer.iterations) == epochs * STEPS
    return [w for part in (distiller.student, *distiller.projectors) for w in part.get_weights()]


KILLS = {"at the end of an epoch": 2 * STEPS, "in an epoch": 2 * STEPS + 3}


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """What a killed training has left, by when it died."""

    @functools.cache
    def folder_of(when):
        folder = tmp_path_factory.mktemp("killed")
        done = Fork(train, folder, 0, KILLS[when]).wait()
        assert done.returncode == 9, done.stderr[-2000:]
        return folder

    return folder_of


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return train(tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize(
    "when", ["in an epoch", pytest.param("at the end of an epoch", marks=pytest.mark.slow)]
)
def test_killed_and_started_again_where_the_backup_ends(whole, killed, tmp_path, when):
    """Data that begin at the backup's epoch: bit for bit what an unbroken training gives.

    The steps since that epoch's begin are lost and made again.
    """
    folder = shutil.copytree(killed(when), tmp_path / "copy")
    assert (folder / "backup" / "chief").is_dir()
    found = train(folder, start_step=2 * STEPS)
    for a, b in zip(found, whole, strict=True):
        np.testing.assert_array_equal(a, b)
    assert not (folder / "backup" / "chief").exists()


def test_data_that_begin_anew(whole, killed, tmp_path):
    """BackupAndRestore does not know the place in the data: epochs 1 and 2 come again.

    Weights, optimizer and step are restored; the batches are others.
    """
    folder = shutil.copytree(killed("in an epoch"), tmp_path / "copy")
    found = train(folder, start_step=0)
    gap = max(abs(a - b).max() for a, b in zip(found, whole, strict=True))
    print(f"largest difference of a weight when data begin anew: {gap:.3g}")
    assert 1e-4 < gap < 0.1
