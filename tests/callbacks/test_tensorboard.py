"""The TensorBoard callback: what is in the event files after `fit`."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata

import tfkd
from tfkd.callbacks import TensorBoard

TERMS = ["logits_distillation", "feature_distillation"]
OWN = ["agreement", "distillation_loss", "student_loss", "total_loss", *TERMS]
STEPS, EPOCHS = 5, 3  # of batches of 8, 8, 8, 8 and 4 examples


def net(units, name="net"):
    inputs = keras.Input((4,))
    hidden = keras.layers.Dense(units, "relu", name="hidden")(inputs)
    return keras.Model(inputs, keras.layers.Dense(3)(hidden), name=name)


def data(count=36):
    rng = np.random.default_rng(1)
    return rng.normal(size=(count, 4)).astype("float32"), rng.integers(0, 3, count)


def make_distiller(teacher=None, optimizer=None, **compiled):
    linear = tfkd.schedules.Linear
    distiller = tfkd.Distiller(
        net(8, "big") if teacher is None else teacher,
        net(4, "small"),
        [
            tfkd.losses.LogitsDistillation(linear(4.0, 1.0, 0, 12)),
            tfkd.losses.FeatureDistillation(
                teacher_layer_name="hidden", student_layer_name="hidden"
            )
            if teacher is None
            else tfkd.losses.LogitsDistillation(2.0, "mse", name="second"),
        ],
        [0.9, linear(0.0, 0.6, 2, 12)],
        student_loss_weight=0.25,
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    rate = keras.optimizers.schedules.PolynomialDecay(0.2, 20, 0.1)
    distiller.compile(optimizer or keras.optimizers.SGD(rate), loss, ["accuracy"], **compiled)
    return distiller


def fit(model, board, epochs=EPOCHS, validation=True, **kwargs):
    x, y = data()
    kwargs = {"batch_size": 8, "verbose": 0, **kwargs}
    held_out = data(10) if validation else None
    return model.fit(
        x, y, epochs=epochs, validation_data=held_out, callbacks=[board], **kwargs
    ).history


def read(folder):
    """{tag: {step: value}} of one run; a step written twice fails."""
    events = EventAccumulator(str(folder), size_guidance={"tensors": 0}).Reload()
    found = {}
    for tag in events.Tags()["tensors"]:
        points = found.setdefault(tag, {})
        for event in events.Tensors(tag):
            value = tf.make_ndarray(event.tensor_proto)
            if value.dtype == object or value.size == 1:
                assert event.step not in points, (tag, event.step)
                points[event.step] = value.item() if value.size == 1 else value
    return found


def session(folder):
    """Hyper-parameters as the HParams plugin reads them."""
    events = EventAccumulator(str(folder)).Reload()
    content = events.SummaryMetadata(metadata.SESSION_START_INFO_TAG).plugin_data.content
    values = metadata.parse_session_start_info_plugin_data(content).hparams
    return {name: getattr(v, v.WhichOneof("kind")) for name, v in values.items()}


def text(folder):
    (only,) = read(folder)["models"].values()
    return (only[0] if isinstance(only, np.ndarray) else only).decode()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """One run that several tests look at: (folder, history)."""
    keras.utils.set_random_seed(7)
    folder = tmp_path_factory.mktemp("logs") / "run"
    return folder, fit(make_distiller(), TensorBoard(folder, per_step=2))


def by_hand(step):
    """Every scheduled value at a step."""
    return {
        "temperature{}/logits_distillation": 4 - 3 * min(step, 12) / 12,
        "weights{}/logits_distillation": 0.9,
        "weights{}/feature_distillation": 0.6 * min(max(step - 2, 0), 10) / 10,
        "weights{}/student_loss": 0.25,
        "learning_rate{}": 0.2 - 0.1 * step / 20,
    }


def test_epoch_curves_are_the_history_and_train_and_validation_overlay(run):
    folder, history = run
    train, validation = read(folder / "train"), read(folder / "validation")
    tags = {f"distillation/{n}": n for n in OWN} | {f"epoch_{n}": n for n in ("loss", "accuracy")}
    for tag, name in tags.items():
        assert train[tag] == pytest.approx(dict(enumerate(history[name])), rel=1e-6), tag
        assert validation[tag] == pytest.approx(dict(enumerate(history[f"val_{name}"])), rel=1e-6)
    assert not {tag for tag in train if tag in {f"epoch_{n}" for n in OWN}}


def test_weights_temperature_and_learning_rate_are_those_of_the_schedules(run):
    train = read(run[0] / "train")
    for tag in by_hand(0):
        epochs = {epoch: by_hand(STEPS * (epoch + 1))[tag] for epoch in range(EPOCHS)}
        assert train[tag.format("")] == pytest.approx(epochs, rel=1e-6, abs=1e-7), tag
        steps = {step: by_hand(step)[tag] for step in range(2, 16, 2)}
        assert train[tag.format("_by_step")] == pytest.approx(steps, rel=1e-6, abs=1e-7), tag


def test_points_by_step_are_means_since_the_last_point(run):
    folder, history = run
    train = read(folder / "train")
    for tag, name in [(f"distillation_by_step/{n}", n) for n in OWN] + [
        ("metrics_by_step/accuracy", "accuracy"),
        ("metrics_by_step/loss", "loss"),
    ]:
        points = train[tag]
        assert list(points) == [2, 4, 6, 8, 10, 12, 14]
        # The second epoch is steps 6 | 7, 8 | 9, 10, of 8, 16 and 12 examples.
        mean = (8 * points[6] + 16 * points[8] + 12 * points[10]) / 36
        assert mean == pytest.approx(history[name][1], rel=1e-4), name


def test_validation_is_also_at_the_optimizers_step(run):
    folder, history = run
    validation = read(folder / "validation")
    for name in OWN:
        expected = dict(zip([5, 10, 15], history[f"val_{name}"], strict=True))
        assert validation[f"distillation_by_step/{name}"] == pytest.approx(expected, rel=1e-6)
    expected = dict(zip([5, 10, 15], history["val_accuracy"], strict=True))
    assert validation["evaluation_accuracy_vs_iterations"] == pytest.approx(expected)
    assert validation["metrics_by_step/accuracy"] == pytest.approx(expected)


def test_hyper_parameters_of_a_distiller(run):
    big, small = 4 * 8 + 8 + 8 * 3 + 3, 4 * 4 + 4 + 4 * 3 + 3
    found = session(run[0])
    assert found.pop("learning_rate") == pytest.approx(0.2)
    assert found == {
        "optimizer": "SGD",
        "batch_size": 8,
        "model": "small",
        "model_parameters": small,
        "teacher": "big",
        "teacher_parameters": big,
        "student_loss_weight": 0.25,
        "logits_distillation/weight": 0.9,
        "logits_distillation/temperature": (
            "Linear(start=4.0, end=1.0, begin_step=0, end_step=12)"
        ),
        "logits_distillation/loss": "kl_divergence",
        "logits_distillation/standardize": False,
        "feature_distillation/weight": "Linear(start=0.0, end=0.6, begin_step=2, end_step=12)",
        "feature_distillation/loss": found["feature_distillation/loss"],
        "feature_distillation/teacher_layer_name": "hidden",
        "feature_distillation/student_layer_name": "hidden",
        "feature_distillation/projector": "auto",
    }
    assert found["feature_distillation/loss"] in ("mse", "mean_squared_error")


def test_text_describes_both_models(run):
    found = text(run[0])
    for line in (
        "|  | Teacher | Student |",
        "| Name | `big` | `small` |",
        "| Parameters | 67 | 35 |",
        "| Layers | 2 | 2 |",
        "| Input | `(None, 4)` | `(None, 4)` |",
        "The student has 52.2 % of the teacher's parameters.",
        "| on the labels | `student_loss` | 0.25 | – | – |",
        "`hidden` → `hidden`",
        "| `Dense` | 2 | 67 |",
        "| `Dense` | 2 | 35 |",
    ):
        assert line in found, found


def test_by_default_nothing_is_written_by_step_while_training(tmp_path):
    fit(make_distiller(), TensorBoard(str(tmp_path)), epochs=1)
    assert not [tag for tag in read(tmp_path / "train") if "_by_step" in tag]
    assert session(tmp_path)["batch_size"] == 8


def test_plain_model_and_points_of_single_batches(tmp_path):
    # At rate 0 every batch's loss is known from the first weights.
    model = keras.Sequential([keras.layers.Dense(1, input_shape=(4,))], name="line")
    model.compile(keras.optimizers.SGD(0.0), "mse", [keras.metrics.RootMeanSquaredError("root")])
    x, y = data()
    kernel, bias = model.get_weights()
    errors = ((x @ kernel + bias)[:, 0] - y) ** 2
    board = TensorBoard(tmp_path, per_step=True)
    model.fit(x, y, 8, epochs=2, shuffle=False, verbose=0, callbacks=[board])
    train = read(tmp_path / "train")
    batches = [errors[start : start + 8].mean() for start in range(0, 36, 8)]
    expected = dict(enumerate(batches * 2, 1))
    assert train["metrics_by_step/loss"] == pytest.approx(expected, rel=1e-4)
    # A root of a mean has no mean of its own: Keras's value since the epoch began.
    assert train["metrics_by_step/root"][5] == pytest.approx(errors.mean() ** 0.5, rel=1e-5)
    assert train["learning_rate"] == {0: 0.0, 1: 0.0}
    assert not [tag for tag in train if tag.startswith(("distillation", "weights", "temp"))]
    assert session(tmp_path) == {
        "optimizer": "SGD",
        "learning_rate": 0.0,
        "batch_size": 8,
        "model": "line",
        "model_parameters": 5,
        "teacher": "none",
        "teacher_parameters": 0,
        "student_loss_weight": 1.0,
    }
    assert "| Parameters | 5 |" in text(tmp_path)


def test_second_fit_goes_on_where_the_first_ended(tmp_path):
    distiller, board = make_distiller(), TensorBoard(tmp_path, per_step=5)
    first = fit(distiller, board, epochs=2)
    second = fit(distiller, board, epochs=1)
    third = fit(distiller, board, epochs=5, initial_epoch=3)
    everything = [*first["total_loss"], *second["total_loss"], *third["total_loss"]]
    train, validation = read(tmp_path / "train"), read(tmp_path / "validation")
    expected = dict(enumerate(everything))
    assert train["distillation/total_loss"] == pytest.approx(expected, rel=1e-6)
    assert list(train["distillation_by_step/total_loss"]) == [5, 10, 15, 20, 25]
    assert list(validation["distillation/total_loss"]) == [0, 1, 2, 3, 4]
    assert list(validation["distillation_by_step/total_loss"]) == [5, 10, 15, 20, 25]
    assert list(read(tmp_path)["models"]) == [0]


def test_a_new_model_is_described_again(tmp_path):
    board = TensorBoard(tmp_path)
    fit(make_distiller(), board, epochs=1)
    fit(make_distiller(), board, epochs=1)
    assert list(read(tmp_path)["models"]) == [0, 1]
    assert list(read(tmp_path / "train")["epoch_loss"]) == [0, 1]


def test_several_steps_an_execution_give_one_point_each(tmp_path):
    distiller = make_distiller(steps_per_execution=2)
    history = fit(distiller, TensorBoard(tmp_path, per_step=1), epochs=2)
    points = read(tmp_path / "train")["distillation_by_step/total_loss"]
    assert list(points) == [2, 4, 5, 7, 9, 10]
    mean = (16 * points[2] + 16 * points[4] + 4 * points[5]) / 36
    assert mean == pytest.approx(history["total_loss"][0], rel=1e-4)
    assert session(tmp_path)["batch_size"] == 8


def test_evaluate_between_steps_does_not_disturb_the_points(tmp_path):
    class Evaluate(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 2:
                self.model.evaluate(*data(10), verbose=0)

    x, y = data()
    board = TensorBoard(tmp_path, per_step=1)
    distiller = make_distiller()
    distiller.fit(x, y, 8, verbose=0, callbacks=[board, Evaluate()])
    points = read(tmp_path / "train")["distillation_by_step/total_loss"]
    assert list(points) == [1, 2, 3, 4, 5]
    assert all(0 < value < 10 for value in points.values())


@pytest.mark.slow
def test_two_replicas_write_one_run(tmp_path, two_replicas):
    with two_replicas.scope():
        distiller = make_distiller()
    history = fit(distiller, TensorBoard(tmp_path, per_step=1), epochs=1)
    train = read(tmp_path / "train")
    assert train["distillation/total_loss"] == pytest.approx({0: history["total_loss"][0]})
    points = train["distillation_by_step/total_loss"]
    assert list(points) == [1, 2, 3, 4, 5]
    mean = sum(points[step] * (4 if step == 5 else 8) for step in points) / 36
    assert mean == pytest.approx(history["total_loss"][0], rel=1e-4)
    assert session(tmp_path)["batch_size"] == 8


def test_several_teachers_some_of_them_functions(tmp_path):
    def rule(x):
        return x[:, :3]

    fit(make_distiller([net(8, "big"), rule]), TensorBoard(tmp_path), epochs=1)
    found = session(tmp_path)
    assert found["teacher"] == "big + rule"
    assert "teacher_parameters" not in found
    assert found["second/temperature"] == 2.0
    described = text(tmp_path)
    assert "|  | Teacher 1 | Teacher 2 | Student |" in described
    assert "| Name | `big` | `rule` | `small` |" in described
    assert "| Parameters | 67 | – | 35 |" in described


def test_teacher_of_keras_3_is_described(tmp_path):
    keras_3 = pytest.importorskip("keras", minversion="3.0")
    teacher = keras_3.Sequential(
        [keras_3.Input((4,)), keras_3.layers.Dense(3, name="only")], name="modern"
    )
    fit(make_distiller(teacher), TensorBoard(tmp_path), epochs=1)
    assert session(tmp_path)["teacher_parameters"] == 15
    assert "| Name | `modern` | `small` |" in text(tmp_path)


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda: keras.optimizers.Adam(0.125),
        lambda: keras.optimizers.legacy.Adam(0.125),
        pytest.param(
            lambda: keras.mixed_precision.LossScaleOptimizer(keras.optimizers.Adam(0.125)),
            marks=pytest.mark.slow,
        ),
        lambda: keras.mixed_precision.LossScaleOptimizer(
            keras.optimizers.Adam(
                keras.optimizers.schedules.PiecewiseConstantDecay([100], [0.125, 1.0])
            )
        ),
    ],
    ids=["plain", "legacy", "loss scale", "loss scale and schedule"],
)
def test_learning_rate_of_any_optimizer(tmp_path, optimizer):
    fit(make_distiller(optimizer=optimizer()), TensorBoard(tmp_path), epochs=1, validation=False)
    assert read(tmp_path / "train")["learning_rate"] == {0: 0.125}
    assert session(tmp_path)["learning_rate"] == 0.125
    assert session(tmp_path)["optimizer"] == "Adam"


def test_learning_rate_that_a_callback_sets(tmp_path):
    model = make_distiller(optimizer=keras.optimizers.SGD(0.5))
    halve = keras.callbacks.LearningRateScheduler(lambda epoch, rate: 0.5 / 2**epoch)
    model.fit(*data(), 8, 3, 0, callbacks=[halve, TensorBoard(tmp_path)])
    assert read(tmp_path / "train")["learning_rate"] == {0: 0.5, 1: 0.25, 2: 0.125}


def test_hparams_are_extended_replaced_and_left_out(tmp_path):
    board = TensorBoard(
        tmp_path, hparams={"seed": 3, "batch_size": np.int64(99), "optimizer": None, "mixup": True}
    )
    fit(make_distiller(), board, epochs=1)
    found = session(tmp_path)
    assert (found["seed"], found["batch_size"], found["mixup"]) == (3, 99, True)
    assert "optimizer" not in found
    assert found["model"] == "small"


def test_hparams_and_summary_can_be_left_out_and_the_text_extended(tmp_path):
    fit(make_distiller(), TensorBoard(tmp_path / "a", hparams=False, summary=False), epochs=1)
    assert read(tmp_path / "a") == {}
    fit(make_distiller(), TensorBoard(tmp_path / "b", summary="| MACs |\n| --- |"), epochs=1)
    assert text(tmp_path / "b").endswith("\n\n| MACs |\n| --- |")


def test_arguments_of_keras_still_work(tmp_path):
    board = TensorBoard(
        tmp_path, per_step=2, update_freq=1, histogram_freq=1, write_steps_per_second=True
    )
    fit(make_distiller(), board, epochs=2)
    tags = set(EventAccumulator(str(tmp_path / "train")).Reload().Tags()["tensors"])
    assert {"batch_loss", "batch_agreement", "batch_steps_per_second"} <= tags
    assert "epoch_steps_per_second" in tags
    assert any(tag.endswith("/histogram") for tag in tags)


def test_evaluate_alone(tmp_path):
    distiller = make_distiller()
    logs = distiller.evaluate(
        *data(10), verbose=0, return_dict=True, callbacks=[TensorBoard(tmp_path)]
    )
    del distiller
    points = read(tmp_path / "validation")["distillation_by_step/agreement"]
    assert points == pytest.approx({0: logs["agreement"]})


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"log_dir": 3}, TypeError, "`log_dir`"),
        ({"log_dir": None}, TypeError, "`log_dir`"),
        ({"log_dir": ""}, ValueError, "`log_dir`"),
        ({"log_dir": pathlib.Path(__file__)}, ValueError, "a file of that name"),
        ({"per_step": 0}, ValueError, "`per_step`"),
        ({"per_step": -2}, ValueError, "`per_step`"),
        ({"per_step": 1.5}, TypeError, "`per_step`"),
        ({"per_step": "epoch"}, TypeError, "`per_step`"),
        ({"per_step": None}, TypeError, "`per_step`"),
        ({"hparams": [1]}, TypeError, "`hparams`"),
        ({"hparams": True}, TypeError, "`hparams`"),
        ({"hparams": {3: 1}}, TypeError, "`hparams`"),
        ({"hparams": {"widths": [1, 2]}}, TypeError, "widths"),
        ({"hparams": {"rate": float("nan")}}, ValueError, "rate"),
        ({"summary": None}, TypeError, "`summary`"),
        ({"summary": 1}, TypeError, "`summary`"),
        ({"update_freq": 0}, ValueError, "`update_freq`"),
        ({"update_freq": "step"}, TypeError, "`update_freq`"),
        ({"histogram_frequency": 1}, TypeError, "Did you mean 'histogram_freq'"),
        ({"colour": 1}, TypeError, "There are: log_dir, per_step"),
    ],
)
def test_bad_arguments(arguments, error, words):
    with pytest.raises(error, match=words):
        TensorBoard(**arguments)
