"""Files: what a Distiller writes, what it leaves out, and that training goes on."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile

import h5py
import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
import toys
from toys import CROSSENTROPY, data, logs, net

import tfkd
from tfkd import losses as all_losses
from tfkd import schedules
from tfkd.losses import FeatureDistillation, LogitsDistillation

TEACHER_WIDTH = 7  # no other variable has an axis of this length


def make(teachers=1, optimizer="adam", losses=None, student=None, **kwargs):
    keras.utils.set_random_seed(5)  # projectors start alike
    teacher = [net(TEACHER_WIDTH, seed=10 + i) for i in range(teachers)]
    losses = losses or [
        LogitsDistillation(temperature=schedules.Linear(2.0, 4.0, 0, 6)),
        FeatureDistillation(teacher_layer_name="hidden", student_layer_name="hidden"),
    ]
    student = student or net(4, seed=2, regularizer=keras.regularizers.L2(0.01))
    distiller = tfkd.Distiller(teacher[0] if teachers == 1 else teacher, student, losses, **kwargs)
    distiller.compile(optimizer, CROSSENTROPY, ["accuracy"])
    return distiller


def train(distiller, epochs=1):
    x, y = data(12)
    return logs(distiller.fit(x, y, batch_size=6, epochs=epochs, shuffle=False, verbose=0))


def all_weights(distiller):
    models = [distiller.student, *distiller.projectors]
    return [np.array(w) for model in models for w in model.get_weights()]


def assert_equal_weights(first, second):
    for a, b in zip(all_weights(first), all_weights(second), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("teachers", "optimizer"),
    [
        (2, "adam"),
        pytest.param(1, "adam", marks=pytest.mark.slow),
        pytest.param(1, "momentum", marks=pytest.mark.slow),
        pytest.param(2, "momentum", marks=pytest.mark.slow),
    ],
)
def test_a_keras_file_is_loaded_and_goes_on_training(tmp_path, teachers, optimizer):
    if optimizer == "momentum":
        optimizer = keras.optimizers.SGD(0.1, 0.9)
    original = make(
        teachers,
        optimizer,
        distillation_loss_weights=[0.5, schedules.Linear(0.0, 1.0, 0, 6)],
        student_loss_weight=schedules.Linear(0.9, 0.1, 0, 6),
    )
    train(original)
    path = str(tmp_path / "distiller.keras")
    original.save(path)
    loaded = keras.models.load_model(path)

    x, y = data(12)
    np.testing.assert_array_equal(original.predict(x, verbose=0), loaded.predict(x, verbose=0))
    mine, theirs = (d.evaluate(x, y, verbose=0, return_dict=True) for d in (original, loaded))
    assert mine == pytest.approx(theirs, rel=1e-6)
    assert original.scheduled_values() == loaded.scheduled_values()
    assert isinstance(loaded.teacher, list) == (teachers == 2)
    first, second = train(original), train(loaded)
    assert first == pytest.approx(second, rel=1e-5)
    assert_equal_weights(original, loaded)
    assert int(loaded.optimizer.iterations) == 4


def test_a_distiller_saved_before_training_is_loaded(tmp_path):
    original = make()
    path = str(tmp_path / "distiller.keras")
    original.save(path)
    loaded = keras.models.load_model(path)
    assert_equal_weights(original, loaded)
    train(original)
    train(loaded)
    assert_equal_weights(original, loaded)


def test_a_file_is_loaded_without_compiling(tmp_path):
    original = make()
    original.save(str(tmp_path / "distiller.keras"))
    loaded = keras.models.load_model(str(tmp_path / "distiller.keras"), compile=False)
    loaded.compile("adam", CROSSENTROPY)
    assert np.isfinite(train(loaded)["loss"])


def test_a_mixed_float16_student_goes_on_training(tmp_path):
    x = keras.Input((5,))
    h = keras.layers.Dense(4, "tanh", dtype="mixed_float16", name="hidden")(x)
    student = keras.Model(x, keras.layers.Dense(3, dtype="float32")(h))
    original = make(student=toys.randomize(student, 2))
    train(original)
    original.save(str(tmp_path / "distiller.keras"))
    loaded = keras.models.load_model(str(tmp_path / "distiller.keras"))
    assert isinstance(loaded.optimizer, keras.mixed_precision.LossScaleOptimizer)
    train(original)
    train(loaded)
    assert_equal_weights(original, loaded)


def compiled_and_trained(model):
    x, y = data(12)
    model.compile("adam", CROSSENTROPY, ["accuracy"])
    model.fit(x, y, batch_size=6, verbose=0)
    return model


def teachers_that_were_trained(kind):
    """One with an optimizer of its own, or with it one inside another, which has two."""
    trained = compiled_and_trained(net(TEACHER_WIDTH, seed=10))
    if kind == "one":
        return trained
    x = keras.Input((5,))
    inner = compiled_and_trained(net(TEACHER_WIDTH, seed=11))
    outer = keras.Model(x, keras.layers.Dense(3, dtype="float32")(inner(x)))
    return [trained, compiled_and_trained(outer)]


def in_weights_of(path, folder):
    with zipfile.ZipFile(path) as archive:
        archive.extract("model.weights.h5", folder)
    return in_h5(folder / "model.weights.h5")


@pytest.fixture
def mixed_float16():
    keras.mixed_precision.set_global_policy("mixed_float16")
    yield
    keras.mixed_precision.set_global_policy("float32")


@pytest.mark.parametrize("teacher", [pytest.param("one", marks=pytest.mark.slow), "list"])
def test_what_a_teacher_was_trained_with_is_not_in_the_file(tmp_path, teacher, mixed_float16):
    teacher = teachers_that_were_trained(teacher)
    # Trained by itself, then partly frozen: its own optimizer knows other variables.
    student = compiled_and_trained(net(4, seed=2))
    student.get_layer("hidden").trainable = False
    original = tfkd.Distiller(teacher, student, LogitsDistillation(2.0))
    original.compile("adam", CROSSENTROPY, ["accuracy"])
    train(original)
    path = str(tmp_path / "d.keras")
    original.save(path)
    names = [name for name in in_weights_of(path, tmp_path) if "optimizer" in name]
    assert names and all(name.startswith("optimizer/") for name in names)
    loaded = keras.models.load_model(path)
    first, second = train(original), train(loaded)
    assert first == pytest.approx(second, rel=1e-5)
    assert_equal_weights(original, loaded)
    assert int(loaded.optimizer.iterations) == 4
    for one in teacher if isinstance(teacher, list) else [teacher]:
        one.evaluate(*data(12), verbose=0)  # compiled as it was
        assert int(one.optimizer.iterations) == 2


def test_a_file_that_holds_how_the_teacher_was_compiled_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr("tfkd.distillation.saving._models_in", lambda model: [])
    original = tfkd.Distiller(
        teachers_that_were_trained("one"), net(4, seed=2), LogitsDistillation(2.0)
    )
    original.compile("adam", CROSSENTROPY)
    train(original)
    path = str(tmp_path / "d.keras")
    original.save(path)
    assert "teacher/optimizer/vars/0" in in_weights_of(path, tmp_path)  # as it was written once
    loaded = keras.models.load_model(path)
    assert getattr(loaded.teacher, "optimizer", None) is None
    train(original)
    train(loaded)
    assert_equal_weights(original, loaded)


def test_a_student_that_was_compiled_is_loaded_so(tmp_path):
    original = make(student=compiled_and_trained(net(4, seed=2)))
    original.save(str(tmp_path / "d.keras"))
    loaded = keras.models.load_model(str(tmp_path / "d.keras"))
    mine, theirs = (d.student.evaluate(*data(12), verbose=0) for d in (original, loaded))
    assert mine == pytest.approx(theirs, rel=1e-6)


def checkpoint(path, **kwargs):
    return keras.callbacks.ModelCheckpoint(str(path), **kwargs)


@pytest.mark.parametrize("name", ["d", "d.h5"])
def test_a_format_in_which_a_distiller_would_not_distil_is_refused(tmp_path, name):
    original = make()
    original.predict(data()[0], verbose=0)
    with pytest.raises(ValueError, match="ends in .keras, received .*weights alone"):
        original.save(str(tmp_path / name))
    before = original.student.get_weights()
    with pytest.raises(ValueError, match="ends in .keras"):
        original.fit(*data(), callbacks=[checkpoint(tmp_path / name)], verbose=0)
    with pytest.raises(ValueError, match="ends in .keras"):
        original.save(str(tmp_path / "d.keras"), save_format="tf")
    for a, b in zip(before, original.student.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not list(tmp_path.iterdir())


def test_clone_by_config_and_deepcopy_like_uses():
    original = make()
    again = tfkd.Distiller.from_config(original.get_config())
    assert again.get_config() == original.get_config()
    assert not {id(v) for v in again.student.variables} & {
        id(v) for v in original.student.variables
    }


def in_h5(path):
    """Names and shapes of every array in an HDF5 file."""
    found = {}
    with h5py.File(path) as file:
        file.visititems(
            lambda name, item: found.update({name: item.shape}) if hasattr(item, "shape") else None
        )
    return found


# What only a teacher has: kernel (5, 7), bias (7,), kernel (7, 3). A projector
# has (4, 7) and (7,).
TEACHER_SHAPES = {(5, 7), (7, 3)}


def test_weights_files_leave_the_teacher_out_and_load_back(tmp_path):
    original = make()
    train(original)
    path = str(tmp_path / "all.weights.h5")
    original.save_weights(path)
    found = in_h5(path)
    assert not TEACHER_SHAPES & set(found.values()), found
    assert not [name for name in found if "teacher" in name]
    assert (4, 7) in found.values() and (5, 4) in found.values()

    other = make(student=net(4, seed=99, regularizer=keras.regularizers.L2(0.01)))
    train(other)
    other.load_weights(path)
    assert_equal_weights(original, other)
    train(original)
    train(other)
    assert_equal_weights(original, other)


def test_a_keras_file_holds_the_teacher(tmp_path):
    original = make()
    path = str(tmp_path / "distiller.keras")
    original.save(path)
    with zipfile.ZipFile(path) as archive:
        archive.extract("model.weights.h5", tmp_path)
    assert set(in_h5(tmp_path / "model.weights.h5").values()) >= TEACHER_SHAPES
    loaded = keras.models.load_model(path)
    toys.assert_same_weights(original.teacher, loaded.teacher, rtol=0)


def shapes_in_checkpoint(path):
    return {tuple(shape) for _, shape in tf.train.list_variables(str(path))}


@pytest.mark.parametrize("teachers", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_checkpoints_leave_the_teacher_out_and_load_back(tmp_path, teachers):
    original = make(teachers)
    train(original)
    original.save_weights(str(tmp_path / "model"))
    tf.train.Checkpoint(model=original, optimizer=original.optimizer).write(str(tmp_path / "all"))
    for name in ("model", "all"):
        assert not shapes_in_checkpoint(tmp_path / name) & TEACHER_SHAPES
        assert (4, 7) in shapes_in_checkpoint(tmp_path / name)
        names = [name for name, _ in tf.train.list_variables(str(tmp_path / name))]
        assert not [n for n in names if "teacher" in n]

    first = make(teachers, student=net(4, seed=99))
    first.load_weights(str(tmp_path / "model"))
    assert_equal_weights(original, first)
    second = make(teachers, student=net(4, seed=99, regularizer=keras.regularizers.L2(0.01)))
    tf.train.Checkpoint(model=second, optimizer=second.optimizer).read(
        str(tmp_path / "all")
    ).expect_partial()
    train(original)
    train(second)
    assert_equal_weights(original, second)


class Stop(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 2:
            raise KeyboardInterrupt


def test_backup_and_restore_goes_on_where_it_was_stopped(tmp_path):
    def backup():
        return keras.callbacks.BackupAndRestore(str(tmp_path / "backup"), delete_checkpoint=False)

    x, y = data(12)
    args = {"batch_size": 6, "epochs": 4, "shuffle": False, "verbose": 0}
    whole = make()
    whole.fit(x, y, **args)
    stopped = make()
    with pytest.raises(KeyboardInterrupt):
        stopped.fit(x, y, callbacks=[backup(), Stop()], **args)
    resumed = make(student=net(4, seed=99, regularizer=keras.regularizers.L2(0.01)))
    history = resumed.fit(x, y, callbacks=[backup()], **args)
    assert len(history.epoch) == 2
    assert_equal_weights(whole, resumed)
    path = tf.train.latest_checkpoint(str(tmp_path / "backup"), "checkpoint") or (
        tf.train.latest_checkpoint(str(tmp_path / "backup" / "chief"), "checkpoint")
    )
    assert path and not shapes_in_checkpoint(path) & TEACHER_SHAPES


@pytest.mark.parametrize(
    "name", ["best.keras", "best.weights.h5", pytest.param("best", marks=pytest.mark.slow)]
)
def test_model_checkpoint(tmp_path, name):
    distiller = make()
    x, y = data(12)
    weights_only = not name.endswith(".keras")
    callback = keras.callbacks.ModelCheckpoint(
        str(tmp_path / name),
        "val_student_loss",
        save_best_only=True,
        save_weights_only=weights_only,
    )
    history = distiller.fit(
        x, y, epochs=2, validation_data=(x, y), callbacks=[callback], verbose=0
    ).history
    assert history["val_student_loss"][1] < history["val_student_loss"][0]
    if weights_only:
        found = make(student=net(4, seed=99, regularizer=keras.regularizers.L2(0.01)))
        found.load_weights(str(tmp_path / name))
    else:
        found = keras.models.load_model(str(tmp_path / name))
    np.testing.assert_allclose(
        found.predict(x, verbose=0), distiller.predict(x, verbose=0), rtol=1e-6
    )


@keras.saving.register_keras_serializable(package="tests")
class Custom(all_losses.DistillationLoss):
    def __init__(self, factor=2.0, name=None):
        super().__init__(name)
        self.factor = factor

    def compute_loss(self, teacher_outputs, student_outputs, **kwargs):
        return self.factor * tf.reduce_mean(tf.abs(teacher_outputs - student_outputs))

    def get_config(self):
        return {**super().get_config(), "factor": self.factor}


def every_loss():
    """One of each loss in tfkd.losses; a new one must be added here."""
    linear = schedules.Linear(2.0, 4.0, 0, 6)
    layers = {"teacher_layer_name": "hidden", "student_layer_name": "hidden"}
    made = [
        LogitsDistillation(linear),
        LogitsDistillation(2.0, keras.losses.CategoricalCrossentropy(), name="named"),
        FeatureDistillation(**layers),
        FeatureDistillation(keras.losses.Huber(0.5), **layers, projector="always"),
        FeatureDistillation(**layers, projector=keras.layers.Dense(TEACHER_WIDTH, "relu")),
        FeatureDistillation("mae"),
        all_losses.DecoupledDistillation(linear, 1.0, schedules.Linear(0.0, 8.0, 0, 6)),
        all_losses.RelationalDistillation(1.0, 2.0, **layers),
        all_losses.PearsonDistillation(linear, standardize=True),
        all_losses.TransformedTeacherMatching(linear),
        all_losses.ExpectedErrorLoss(name="error"),
        Custom(3.0),
    ]
    on_maps = [all_losses.AttentionTransfer("hidden", "hidden")]
    on_numbers = [all_losses.BoundedRegression(linear)]
    return made, on_maps, on_numbers


def test_the_list_of_losses_is_complete():
    tested = {type(loss).__name__ for losses in every_loss() for loss in losses}
    bases = {"DistillationLoss", "ElementwiseLoss", "Elements", "curriculum_objective"}
    assert set(all_losses.__all__) - bases - toys.losses_of_detectors() <= tested


def assert_goes_on(original, path, x, y):
    def step(distiller):
        return logs(distiller.fit(x, y, batch_size=6, shuffle=False, verbose=0))

    step(original)
    original.save(path)
    loaded = keras.models.load_model(path)
    configs = [[loss.get_config() for loss in d.distillation_losses] for d in (original, loaded)]
    assert configs[0] == configs[1]
    assert step(original) == pytest.approx(step(loaded), rel=1e-5)
    assert_equal_weights(original, loaded)


def test_every_loss_is_saved(tmp_path):
    original = make(losses=every_loss()[0])
    assert_goes_on(original, str(tmp_path / "d.keras"), *data(12))


def test_losses_on_maps_and_numbers_are_saved(tmp_path):
    def sequence_net(width, seed):
        x = keras.Input((4, 5))
        hidden = keras.layers.Dense(width, name="hidden")(x)
        out = keras.layers.Dense(1)(keras.layers.GlobalAveragePooling1D()(hidden))
        return toys.randomize(keras.Model(x, out), seed)

    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(12, 4, 5)), rng.normal(size=(12, 1))
    _, on_maps, on_numbers = every_loss()
    original = tfkd.Distiller(sequence_net(7, 1), sequence_net(4, 2), on_maps + on_numbers)
    original.compile("adam", "mse")
    assert_goes_on(original, str(tmp_path / "d.keras"), x, y)


def test_a_teacher_that_is_no_tf_keras_model_can_not_be_saved_with_it(tmp_path):
    distiller = tfkd.Distiller(lambda inputs: inputs[:, :3], net(seed=2), LogitsDistillation())
    distiller.compile("adam", CROSSENTROPY)
    with pytest.raises(ValueError, match="`teacher`: expected a tf_keras model.*save_weights"):
        distiller.save(str(tmp_path / "d.keras"))
    train(distiller)
    distiller.save_weights(str(tmp_path / "d.weights.h5"))
    distiller.student.save(str(tmp_path / "student.keras"))


def test_a_lambda_in_a_loss_is_a_clear_error(tmp_path):
    distiller = make(losses=[FeatureDistillation(lambda t, s: tf.abs(t - s))])
    with pytest.raises(ValueError, match="`loss`: expected something that can be saved"):
        distiller.save(str(tmp_path / "d.keras"))


@pytest.mark.slow
def test_the_student_alone_is_a_plain_model(tmp_path):
    """It loads in a process that has no tfkd, and holds no projector and no teacher."""
    distiller = make()
    train(distiller)
    path = str(tmp_path / "student.keras")
    distiller.student.save(path)
    x, _ = data()
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", distiller.student(x))
    code = (
        "import sys, numpy as np, tf_keras as keras\n"
        "sys.modules['tfkd'] = None\n"
        f"model = keras.models.load_model({path!r})\n"
        f"x, y = np.load({str(tmp_path / 'x.npy')!r}), np.load({str(tmp_path / 'y.npy')!r})\n"
        "np.testing.assert_allclose(model(x), y, rtol=1e-6)\n"
        "assert len(model.get_weights()) == 4\n"
    )
    environment = {**os.environ, "TF_USE_LEGACY_KERAS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_checkpoint_of_the_student_alone_is_a_plain_model(tmp_path):
    x, y = data(12)
    for name in ("student.keras", "student.h5", "student"):
        distiller = make(optimizer=keras.optimizers.Adam(0.05))
        keep = tfkd.callbacks.StudentCheckpoint(
            tmp_path / name, monitor="val_loss", mode="max", save_best_only=True
        )
        scores = []
        note = keras.callbacks.LambdaCallback(
            on_epoch_end=lambda epoch, logs, d=distiller, s=scores: s.append(d.student(x).numpy())
        )
        history = distiller.fit(
            x, y, epochs=3, validation_data=(x, y), verbose=0, callbacks=[keep, note]
        ).history
        loaded = keras.models.load_model(tmp_path / name)
        best = scores[np.argmax(history["val_loss"])]
        np.testing.assert_allclose(loaded.predict(x, verbose=0), best, rtol=1e-4, atol=1e-6)
        assert [w.shape for w in loaded.weights] == [w.shape for w in distiller.student.weights]


def test_a_checkpoint_of_a_quantized_student_is_refused_before_training(tmp_path):
    x, y = data(12)
    student = tfkd.quantization.quantize(net(4), target="tflite")
    tfkd.quantization.calibrate(student, x)
    distiller = make(student=student, losses=[LogitsDistillation(2.0)])
    keep = tfkd.callbacks.StudentCheckpoint(tmp_path / "student.keras")
    with pytest.raises(ValueError, match=r"tfkd\.quantization\.save\(distiller\.student"):
        distiller.fit(x, y, verbose=0, callbacks=[keep])
