"""Scores in the logs of `fit`, and what TensorBoard reads back."""

from __future__ import annotations

import csv
import math
import types

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import tfkd
from tfkd import replicas, report
from tfkd.callbacks import detection_report
from tfkd.detection import UNLABELLED

PRIORS = np.float32([[0.3, 0.3, 0.4, 0.4], [0.7, 0.7, 0.4, 0.4], [0.3, 0.7, 0.3, 0.3]])
NAMES = ["cell", "dust, fine"]
TRUTH = {
    "boxes": np.float32([[[0.1, 0.1, 0.5, 0.5]], [[0.5, 0.5, 0.9, 0.9]], [[-1] * 4]]),
    "classes": np.int32([[0], [0], [-1]]),
}
IMAGES = np.random.default_rng(3).integers(0, 256, (3, 8, 8, 3)).astype(np.uint8)
# Of three priors, the first one is of class 0 in the first image, and so on.
LOGITS = np.zeros((3, 3, 3), np.float32)
LOGITS[[0, 1], [0, 1], 1] = 1.0
LOGITS[..., 0] = 1.0 - LOGITS.sum(-1)
Y = {"boxes": np.zeros((3, 3, 4), np.float32), "classes": LOGITS}


def detector(seed=0):
    keras.utils.set_random_seed(seed)
    pixels = keras.Input((8, 8, 3))
    hidden = keras.layers.Dense(4, "relu", name="hidden")(keras.layers.Flatten()(pixels))
    boxes = keras.layers.Reshape((3, 4))(keras.layers.Dense(12)(hidden))
    logits = keras.layers.Reshape((3, 3))(keras.layers.Dense(9)(hidden))
    return keras.Model(pixels, {"boxes": boxes, "classes": logits})


def compiled(seed=0):
    model = detector(seed)
    softmax = keras.losses.CategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.05), {"boxes": "mse", "classes": softmax})
    return model


def fit(model, callbacks, epochs=2, **kwargs):
    x = IMAGES / np.float32(127.5) - 1
    return model.fit(x, Y, 3, epochs, verbose=0, callbacks=callbacks, **kwargs).history


def scoring(**kwargs):
    return tfkd.callbacks.DetectionReport(IMAGES, TRUTH, PRIORS, NAMES, **kwargs)


@pytest.mark.slow
def test_the_scores_are_in_the_logs_for_those_that_stand_after(tmp_path):
    model, callback = compiled(), scoring()
    best = keras.callbacks.ModelCheckpoint(
        f"{tmp_path}/best-{{val_map50_cell:.3f}}.h5", "val_map",
        save_best_only=True, save_weights_only=True, mode="max",
    )  # fmt: skip
    table = keras.callbacks.CSVLogger(tmp_path / "log.csv")
    logs = fit(model, [callback, best, table], 3)
    scores = {name: values for name, values in logs.items() if "map" in name}
    # "dust" has no object, and no score.
    assert set(scores) == {"val_map", "val_map50", "val_map50_cell"}
    expected = report.evaluate_detector(model, IMAGES, TRUTH, PRIORS, NAMES)
    assert logs["val_map"][-1] == pytest.approx(expected.map)
    assert logs["val_map50"] == logs["val_map50_cell"]
    assert callback.scores.map50 == logs["val_map50"][-1] == pytest.approx(expected.map50)
    assert list(tmp_path.glob("best-*.h5"))
    with open(tmp_path / "log.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["val_map"]) for row in rows] == pytest.approx(logs["val_map"])


def test_training_ends_when_the_score_does_not_rise():
    stop = keras.callbacks.EarlyStopping("val_map", mode="max", patience=2)
    model = compiled()
    model.optimizer.learning_rate.assign(0.0)
    assert len(fit(model, [scoring(), stop], 9)["val_map"]) == 3


def test_the_student_of_a_distiller_is_scored():
    student, teacher = detector(1), detector(2)
    loss = tfkd.losses.FeatureDistillation(teacher_layer_name="hidden", student_layer_name="hidden")
    model = tfkd.Distiller(teacher, student, loss)
    model.compile(keras.optimizers.SGD(0.0), {"boxes": "mse", "classes": "mse"})
    logs = fit(model, [scoring(score_threshold=0.2, prefix="student_")], 1)
    expected = report.evaluate_detector(student, IMAGES, TRUTH, PRIORS, NAMES, score_threshold=0.2)
    assert logs["student_map50"] == [pytest.approx(expected.map50)]


def test_epochs_without_an_evaluation_have_no_scores():
    callback = scoring(frequency=2)
    seen = []
    spy = keras.callbacks.LambdaCallback(on_epoch_end=lambda _, logs: seen.append(list(logs)))
    fit(compiled(), [callback, spy], 5)
    assert ["val_map" in names for names in seen] == [False, True, False, True, False]


def read(folder):
    events = EventAccumulator(str(folder), {"tensors": 0, "images": 0, "scalars": 0})
    events.Reload()
    return events


def values(events, tag):
    return [(e.step, tf.make_ndarray(e.tensor_proto)) for e in events.Tensors(tag)]


def test_tensorboard_reads_scalars_pictures_and_curves(tmp_path):
    model = compiled()
    board = tfkd.callbacks.TensorBoard(tmp_path, write_graph=False)
    callback = scoring(log_dir=board, pictures=2, image_size=(40, 40))
    logs = fit(model, [callback, board], 12)
    fit(model, [callback, board], 1)
    events = read(tmp_path / "validation")
    tags = set(events.Tags()["tensors"])
    names = {"map", "map50", "map75", "map_small", "ar100", "map50_cell"}
    curve = "detection/precision_recall/cell/pr_curves"
    own = {f"detection/{name}" for name in names} | {curve}
    own |= {"detection/picture_0", "detection/picture_1"}
    # Keras's callback, which stands after, has the logs too.
    assert tags == own | {"epoch_map", "epoch_map50", "epoch_map50_cell"}
    steps, scalars = zip(*values(events, "detection/map50"), strict=True)
    assert steps == tuple(range(13))  # The second call of fit goes on.
    np.testing.assert_allclose(scalars[:12], logs["val_map50"], rtol=1e-6)
    assert [step for step, _ in values(events, "epoch_map50")] == list(range(13))
    width, height, png = values(events, "detection/picture_1")[-1][1]
    picture = tf.io.decode_png(png).numpy()
    assert picture.shape == (int(height), int(width), 3) and picture.shape[1] == 424
    assert events.SummaryMetadata(curve).plugin_data.plugin_name == "pr_curves"
    true, false, _, missed, precision, recall = values(events, curve)[-1][1]
    assert len(true) == 101 and (true + missed == 2).all()
    np.testing.assert_allclose(recall, true / 2)
    kept = true + false
    np.testing.assert_allclose(precision[kept > 0], (true[kept > 0] / kept[kept > 0]), rtol=1e-6)
    assert (precision[kept == 0] == 1).all() and (np.diff(recall) <= 0).all()
    # The net has learned its three images by heart.
    assert true[0] == 2


def test_without_a_folder_nothing_is_written_and_no_picture_tried(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(detection_report, "detection_pictures", None)
    fit(compiled(), [scoring()])
    fit(compiled(), [scoring(log_dir=tmp_path / "run", pictures=0)])
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    tags = read(tmp_path / "run" / "validation").Tags()["tensors"]
    assert "detection/map" in tags and not [tag for tag in tags if "picture" in tag]


def test_a_diverged_model_has_nan_scores_and_says_so_once():
    class Break(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            kernel = self.model.get_layer("hidden").kernel
            kernel.assign(tf.fill(kernel.shape, np.nan))

    with pytest.warns(UserWarning, match="after epoch 1: .* hidden/kernel:0") as warned:
        logs = fit(compiled(), [Break(), scoring()], 2)
    assert len([w for w in warned if "DetectionReport" in str(w.message)]) == 1
    for name in ("val_map", "val_map50", "val_map50_cell"):
        assert [math.isnan(value) for value in logs[name]] == [True, True]


def test_two_replicas_score_and_write_once(two_replicas, tmp_path):
    with two_replicas.scope():
        model = compiled()
    x = np.repeat(IMAGES / np.float32(127.5) - 1, 2, 0)
    y = {name: np.repeat(values, 2, 0) for name, values in Y.items()}
    callback = scoring(log_dir=tmp_path)
    logs = model.fit(x, y, 6, 2, verbose=0, callbacks=[callback]).history
    expected = report.evaluate_detector(model, IMAGES, TRUTH, PRIORS, NAMES)
    assert logs["val_map"][-1] == pytest.approx(expected.map)
    events = read(tmp_path / "validation")
    assert [step for step, _ in values(events, "detection/map")] == [0, 1]


def test_of_several_workers_the_chief_writes():
    def model(should):
        extended = types.SimpleNamespace(should_save_summary=should)
        strategy = types.SimpleNamespace(extended=extended)
        return types.SimpleNamespace(distribute_strategy=strategy)

    assert replicas.writes(model(True)) and not replicas.writes(model(False))
    assert replicas.writes(compiled())


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"data": IMAGES[:2]}, "truth of 2 images"),
        ({"data": IMAGES[0]}, "(N, H, W, 3)"),
        ({"truth": dict(TRUTH, classes=[[0], [0], [UNLABELLED]])}, "without labels"),
        ({"truth": dict(TRUTH, classes=np.full((3, 1), -1))}, "at least one object"),
        ({"truth": dict(TRUTH, classes=[[2], [0], [-1]])}, "below 2"),
        (
            {"truth": dict(TRUTH, classes=[[0], [1], [-1]]), "class_names": ["a b", "a-b"]},
            "differ in their letters",
        ),
        ({"anchors": PRIORS[0]}, "(P, 4)"),
        ({"frequency": 0}, "frequency"),
        ({"pictures": -1}, "pictures"),
        ({"log_dir": 3}, "a folder, or None"),
        ({"prefix": 3}, "a string"),
        ({"picture_threshold": 3}, "picture_threshold"),
        ({"batch_size": 0}, "batch_size"),
        ({"score_treshold": 0.1}, "'score_threshold'"),
    ],
)
def test_bad_arguments(change, text):
    arguments = {"data": IMAGES, "truth": TRUTH, "anchors": PRIORS, "class_names": NAMES}
    with pytest.raises((TypeError, ValueError)) as error:
        tfkd.callbacks.DetectionReport(**{**arguments, **change})
    assert text in str(error.value)
