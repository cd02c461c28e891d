"""A training that is killed and started again ends as one that was not."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tf_keras as keras
import toys
from toys import CROSSENTROPY

import tfkd
from tfkd import progressive
from tfkd.curriculum import AdaptivePace, Curriculum, Stage

RNG = np.random.default_rng(0)
X = RNG.normal(size=(32, 8, 8, 1)).astype(np.float32)
Y = (X.mean((1, 2, 3)) > 0).astype(np.int32)


def plain(seed, width=8):
    x = keras.Input((8, 8, 1))
    h = keras.layers.Conv2D(width, 3, padding="same", name="conv")(x)
    h = keras.layers.ReLU(name="relu")(keras.layers.BatchNormalization(name="bn")(h))
    h = keras.layers.GlobalAveragePooling2D(name="pool")(h)
    return toys.randomize(keras.Model(x, keras.layers.Dense(2, name="scores")(h)), seed)


def stages():
    return [
        Stage(2, "easy", fraction=AdaptivePace(0.5, 1.5, monitor="stage"), freeze="scores"),
        Stage(2, "decay", fraction=0.9, decay=progressive.Decay({"filter_rate": 0.5}, end=0.5)),
        Stage(1, "cut", learning_rate=0.003),
        Stage(2, "int8", structure=progressive.Quantize(X, target="tflite")),
    ]


class Killed(Exception):
    pass


class Kill(keras.callbacks.Callback):
    """Dies in an epoch, before it is saved."""

    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_end(self, epoch, logs=None):
        if epoch == self.epoch:
            raise Killed


def run(folder, kill=None):
    """The student and the logs of a training, which may be killed."""
    keras.backend.clear_session()
    hint = tfkd.losses.FeatureDistillation(teacher_layer_name="pool", student_layer_name="pool")
    keras.utils.set_random_seed(3)  # a projector starts alike
    distiller = tfkd.ProgressiveDistiller(
        plain(1, 16), plain(2), stages(), [tfkd.losses.LogitsDistillation(2.0), hint]
    )
    distiller.compile(keras.optimizers.Adam(0.01), CROSSENTROPY)
    data = Curriculum((X, Y), np.abs(X.mean((1, 2, 3))), 1.0, 8)
    callbacks = [] if kill is None else [Kill(kill)]
    distiller.fit(data, verbose=0, callbacks=callbacks, backup_dir=folder)
    return distiller


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    distiller = run(tmp_path_factory.mktemp("whole") / "backup")
    return toys.weights_of(distiller.student), distiller.logs


@pytest.mark.slow
@pytest.mark.parametrize(
    "epochs",
    [(1, 4, 6), *(pytest.param(e, marks=pytest.mark.slow) for e in ((1, 2), (3, 4), (5, 6)))],
    ids=str,
)
def test_a_killed_training_goes_on(whole, tmp_path, epochs):
    """Killed again and again: in the middle of stages and at their beginnings."""
    folder = tmp_path / "backup"
    for epoch in epochs:
        with pytest.raises(Killed):
            run(folder, epoch)
        assert len(json.loads((folder / "state.json").read_text())["logs"]) == epoch
        assert len(list(folder.glob("checkpoint-*.index"))) == 1
    distiller = run(folder)
    weights, logs = whole
    for a, b in zip(weights, distiller.student.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert (
        [e["stage"] for e in distiller.logs] == [e["stage"] for e in logs] == [0, 0, 1, 1, 2, 3, 3]
    )
    np.testing.assert_allclose(
        [e["fraction"] for e in distiller.logs], [e["fraction"] for e in logs], rtol=1e-6
    )
    np.testing.assert_allclose(
        [e["loss"] for e in distiller.logs], [e["loss"] for e in logs], rtol=1e-4
    )
    assert not folder.exists()


def small(stages, folder):
    distiller = tfkd.ProgressiveDistiller(
        toys.net(8, seed=2), toys.net(4), stages, tfkd.losses.LogitsDistillation(2.0)
    )
    distiller.compile("sgd", CROSSENTROPY)
    x, y = toys.data(8)
    return distiller.fit(x, y, verbose=0, callbacks=[Kill(1)], backup_dir=folder)


def test_a_backup_of_other_stages_is_refused(tmp_path):
    with pytest.raises(Killed):
        small([Stage(2)], tmp_path)
    with pytest.raises(
        ValueError, match="backup of a training with these stages.*Delete the folder"
    ):
        small([Stage(2), Stage(1)], tmp_path)


def soft(rate=2.0):
    return tfkd.losses.LogitsDistillation(rate)


def settings(**changed):
    """A training of two stages; by name what can be changed of it."""
    plan = {
        "teacher": toys.net(8, seed=2),
        "student": toys.net(4),
        "stages": {},
        "optimizer": keras.optimizers.Adam(0.01),
        "loss": CROSSENTROPY,
        "losses": soft(),
        "options": {},
        "compile": {},
        "fit": {},
    } | changed
    first = {"temperature": tfkd.schedules.Linear(4.0, 2.0, end_step=9), "freeze": "hidden"}
    stages = [
        Stage(2, "warm", **(first | plan["stages"])),
        Stage(1, structure=progressive.Prune(filter_rate=0.25), promote=lambda logs: False),
    ]
    distiller = tfkd.ProgressiveDistiller(
        plan["teacher"], plan["student"], stages, plan["losses"], **plan["options"]
    )
    distiller.compile(plan["optimizer"], plan["loss"], **plan["compile"])
    return distiller, plan["fit"]


def started(folder, kill=None, **changed):
    """Where the training begins, after it was stopped by a callback in this epoch."""
    distiller, options = settings(**changed)
    x, y = toys.data(8)
    callbacks = [] if kill is None else [Kill(kill)]
    distiller.fit(x, y, **({"verbose": 0} | options), callbacks=callbacks, backup_dir=folder)
    return distiller


CHANGES = {
    "teacher": ("teacher", lambda: {"teacher": toys.net(8, seed=3)}),
    "teachers": ("teacher", lambda: {"teacher": [toys.net(8, seed=2), toys.net(8, seed=3)]}),
    "student": ("student", lambda: {"student": toys.net(5)}),
    "rate": ("optimizer", lambda: {"optimizer": keras.optimizers.Adam(0.02)}),
    "optimizer": ("optimizer", lambda: {"optimizer": keras.optimizers.SGD(0.01)}),
    "loss": ("loss", lambda: {"loss": keras.losses.SparseCategoricalCrossentropy()}),
    "loss on features": (
        "distillation_losses",
        lambda: {"losses": tfkd.losses.PearsonDistillation(2.0)},
    ),
    "temperature": ("distillation_losses", lambda: {"losses": soft(3.0)}),
    "weight": ("student_loss_weight", lambda: {"options": {"student_loss_weight": 0.9}}),
    "weights": (
        "distillation_loss_weights",
        lambda: {"options": {"distillation_loss_weights": [tfkd.schedules.Constant(2.0)]}},
    ),
    "stage": (
        "temperature of stage 0",
        lambda: {"stages": {"temperature": tfkd.schedules.Linear(4.0, 1.0, end_step=9)}},
    ),
    "frozen": ("freeze of stage 0", lambda: {"stages": {"freeze": ()}}),
    "rate of stage": ("learning_rate of stage 0", lambda: {"stages": {"learning_rate": 0.1}}),
    "batch": ("batch_size", lambda: {"fit": {"batch_size": 4}}),
}


def test_a_backup_of_a_training_with_other_settings_is_refused(tmp_path):
    with pytest.raises(Killed):
        started(tmp_path, 1)
    before = sorted(path.name for path in tmp_path.iterdir())
    for name, changed in CHANGES.values():
        words = rf"These differ: {name}( \('warm'\))?\. Set them as before.*delete the folder"
        with pytest.raises(ValueError, match=words):
            started(tmp_path, **changed())
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert len(started(tmp_path).logs) == 3  # it can still be resumed


@pytest.mark.parametrize("option", [("filter_rate", 0.5), ("x", None)])
def test_options_of_structural_steps_count(tmp_path, option):
    """Those of pruning, and the arrays by which a step is calibrated."""

    def train(kill=None, change=False):
        x, y = toys.data(8)
        step = progressive.Prune(filter_rate=0.5 if change else 0.25)
        if option[0] == "x":
            step = progressive.Quantize(2 * x if change else x, target="tflite")
        distiller = tfkd.ProgressiveDistiller(
            toys.net(8, seed=2), toys.net(4), [Stage(2), Stage(1, structure=step)], soft()
        )
        distiller.compile("sgd", CROSSENTROPY)
        callbacks = [] if kill is None else [Kill(kill)]
        distiller.fit(x, y, verbose=0, callbacks=callbacks, backup_dir=tmp_path)

    with pytest.raises(Killed):
        train(kill=1)
    with pytest.raises(ValueError, match="These differ: structure of stage 1"):
        train(change=True)
    train()


def test_what_does_not_change_a_training_may_change(tmp_path):
    """Names, metrics, callbacks, output, the names that Keras gives; also after a cut."""
    for kill in (1, 2, None):
        keras.layers.Dense(1)  # moves the counter of generated names
        same = {"compile": {"metrics": ["accuracy"] if kill == 2 else None}}
        same["fit"] = {"verbose": 2 if kill == 2 else 0}
        same["optimizer"] = keras.optimizers.Adam(0.01, name=f"adam{kill}")
        if kill is None:
            assert len(started(tmp_path, **same).logs) == 3
        else:
            with pytest.raises(Killed):
                started(tmp_path, kill, **same)


def test_a_backup_of_an_earlier_version_is_resumed_with_a_warning(tmp_path):
    with pytest.raises(Killed):
        started(tmp_path, 1)
    path = tmp_path / "state.json"
    state = json.loads(path.read_text())
    del state["settings"]
    path.write_text(json.dumps(state))
    with pytest.warns(UserWarning, match="earlier version.*resumed"):
        assert len(started(tmp_path).logs) == 3


def test_a_damaged_backup_is_refused(tmp_path):
    (tmp_path / "state.json").write_text("{")
    with pytest.raises(ValueError, match="a readable backup"):
        small([Stage(2)], tmp_path)


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="`backup_dir`: expected a folder"):
        small([Stage(2)], tmp_path / "file")


def test_files_of_others_stay(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(Killed):
        small([Stage(2)], tmp_path)
    distiller = tfkd.ProgressiveDistiller(
        toys.net(8, seed=2), toys.net(4), [Stage(2)], tfkd.losses.LogitsDistillation(2.0)
    )
    distiller.compile("sgd", CROSSENTROPY)
    x, y = toys.data(8)
    assert len(distiller.fit(x, y, verbose=0, backup_dir=tmp_path).history["loss"]) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.slow  # tests/networks/test_keras_files.py is its quicker one
def test_a_changed_student_with_code_and_layers_of_its_own(tmp_path):
    class Own(keras.layers.ReLU):
        """A layer that Keras does not know by name."""

    def train(kill=None, **options):
        x = keras.Input((8, 8, 1))
        h = keras.layers.Lambda(lambda t: 2 * t, name="twice")(x)
        h = keras.layers.Flatten()(keras.layers.Conv2D(4, 3, name="conv")(h))
        student = keras.Model(x, keras.layers.Dense(2)(Own()(keras.layers.Dense(4)(h))))
        half = progressive.Prune(filter_rate=0.5)
        distiller = tfkd.ProgressiveDistiller(
            plain(1), student, [Stage(2, structure=half)], tfkd.losses.LogitsDistillation(2.0)
        )
        distiller.compile("sgd", CROSSENTROPY)
        callbacks = [] if kill is None else [Kill(kill)]
        distiller.fit(X, Y, verbose=0, callbacks=callbacks, backup_dir=tmp_path, **options)
        return distiller

    with pytest.raises(Killed):
        train(kill=1)
    with pytest.raises(ValueError, match="`backup_dir`.*'twice'.*safe_mode=False"):
        train()
    distiller = train(safe_mode=False)
    assert len(distiller.logs) == 2 and distiller.student.get_layer("conv").filters == 2
