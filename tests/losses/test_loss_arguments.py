"""Bad arguments are refused with a clear message; configurations survive JSON."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from tfkd import losses, schedules

AT = losses.AttentionTransfer
BOUNDED = losses.BoundedRegression
DKD = losses.DecoupledDistillation
ERROR = losses.ExpectedErrorLoss
FEATURE = losses.FeatureDistillation
LOGITS = losses.LogitsDistillation
PEARSON = losses.PearsonDistillation
TTM = losses.TransformedTeacherMatching
RKD = losses.RelationalDistillation

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    "make, error, words",
    [
        (lambda: LOGITS(0), ValueError, "`temperature`.*above 0.*received 0"),
        (lambda: LOGITS(-1.5), ValueError, "`temperature`.*received -1.5"),
        (lambda: LOGITS(NAN), ValueError, "`temperature`.*received nan"),
        (lambda: LOGITS(INF), ValueError, "`temperature`.*received inf"),
        (lambda: LOGITS("4"), ValueError, "`temperature`.*received '4'"),
        (lambda: LOGITS(True), ValueError, "`temperature`.*received True"),
        (lambda: LOGITS(None), ValueError, "`temperature`.*received None"),
        (lambda: LOGITS(schedules.Linear(4, 0, 0, 9)), ValueError, "`temperature`.*reaches"),
        (lambda: LOGITS(loss=None), ValueError, "`loss`.*at least one"),
        (lambda: LOGITS(loss=[]), ValueError, "`loss`.*at least one"),
        (lambda: LOGITS(loss={"a": None}), ValueError, "`loss`.*at least one"),
        (lambda: LOGITS(loss=3), ValueError, "`loss`.*received 3"),
        (lambda: LOGITS(loss="kl_divergense"), ValueError, "Did you mean 'kl_divergence'"),
        (lambda: LOGITS(loss=["mse", "huver"]), ValueError, "Did you mean .*'huber'"),
        (
            lambda: LOGITS(loss=keras.losses.KLDivergence),
            ValueError,
            r"`loss`.*Make an instance: KLDivergence\(\)",
        ),
        (
            lambda: LOGITS(loss=keras.losses.CategoricalCrossentropy(label_smoothing=0.1)),
            ValueError,
            "`loss`.*label_smoothing.*temperature",
        ),
        (
            lambda: LOGITS(loss=keras.losses.CategoricalCrossentropy(axis=1)),
            ValueError,
            "`loss`.*last axis",
        ),
        (lambda: LOGITS(name=3), TypeError, "`name`.*received 3"),
        (lambda: LOGITS(name=""), TypeError, "`name`.*non-empty"),
        (lambda: FEATURE("msee"), ValueError, "Did you mean .*'mse'"),
        (lambda: FEATURE(None), ValueError, "`loss`.*at least one"),
        (lambda: FEATURE(teacher_layer_name=3), TypeError, "`teacher_layer_name`.*path"),
        (lambda: FEATURE(student_layer_name=""), TypeError, "`student_layer_name`"),
        (lambda: FEATURE(projector="allways"), ValueError, "Did you mean 'always'"),
        (lambda: FEATURE(projector=3), ValueError, "`projector`.*Keras layer"),
        (lambda: AT(3, "b"), TypeError, "`teacher_layer_name`.*received 3"),
        (lambda: AT("a", ["b"]), TypeError, "`student_layer_name`"),
        (lambda: DKD(temperature=0), ValueError, "`temperature`.*above 0"),
        (lambda: DKD(alpha=-1), ValueError, "`alpha`.*at least 0.*received -1"),
        (lambda: DKD(beta=NAN), ValueError, "`beta`.*received nan"),
        (lambda: DKD(beta="8"), TypeError, "`beta`.*schedule.*received '8'"),
        (lambda: DKD(alpha=schedules.Linear(1, -1, 0, 5)), ValueError, "`alpha`.*reaches"),
        (lambda: LOGITS(standardize=1), TypeError, "`standardize`.*received 1"),
        (lambda: DKD(standardize="no"), TypeError, "`standardize`.*received 'no'"),
        (
            lambda: LOGITS(loss=["mse", "binary_crossentropy"], standardize=True),
            ValueError,
            "`standardize`.*False with .binary_crossentropy.*zero",
        ),
        (lambda: PEARSON(gamma=-1), ValueError, "`gamma`.*at least 0"),
        (lambda: PEARSON(beta="1"), TypeError, "`beta`.*schedule"),
        (lambda: TTM(0), ValueError, "`temperature`.*above 0"),
        (lambda: TTM(weighted=2), TypeError, "`weighted`.*received 2"),
        (lambda: DKD(output=1.5), TypeError, "`output`.*received 1.5"),
        (lambda: DKD(output=True), TypeError, "`output`.*received True"),
        (lambda: ERROR(output=1.5), TypeError, "`output`.*received 1.5"),
        (lambda: ERROR(name=""), TypeError, "`name`.*non-empty"),
        (lambda: RKD(distance_weight=-1), ValueError, "`distance_weight`.*at least 0"),
        (lambda: RKD(angle_weight=INF), ValueError, "`angle_weight`.*received inf"),
        (lambda: RKD("1"), TypeError, "`distance_weight`.*received '1'"),
        (lambda: RKD(0, 0), ValueError, "distance_weight or angle_weight above 0"),
        (lambda: RKD(student_layer_name=7), TypeError, "`student_layer_name`"),
        (lambda: RKD(teacher_layer_name="a", output=0), ValueError, "`output`.*layers are named"),
        (lambda: BOUNDED(-0.1), ValueError, "`margin`.*at least 0.*received -0.1"),
        (lambda: BOUNDED(NAN), ValueError, "`margin`.*received nan"),
        (lambda: BOUNDED(None), TypeError, "`margin`.*received None"),
        (lambda: BOUNDED(output=[0]), TypeError, r"`output`.*received \[0\]"),
        (lambda: BOUNDED(mask=np.ones(3)), TypeError, "`mask`.*callable"),
    ],
)
def test_bad_arguments(make, error, words):
    with pytest.raises(error, match=words):
        make()


def zeros(*shape):
    return tf.zeros(shape)


@pytest.mark.parametrize(
    "loss, teacher, student, more, words",
    [
        (LOGITS(), zeros(2, 3), zeros(2, 4), {}, "same classes.*3.*4"),
        (LOGITS(), zeros(2, 1), zeros(2, 1), {}, "two classes.*binary_crossentropy"),
        (LOGITS(), zeros(2, 1), zeros(2, 1), {}, 'regression "mse"'),
        (LOGITS(loss="mse"), zeros(2, 1), zeros(2, 3), {}, "same classes.*1.*3"),
        (LOGITS(), zeros(2), zeros(2), {}, "class scores of shape"),
        (LOGITS(), [zeros(2, 3)] * 2, zeros(2, 3), {}, "same structure"),
        (LOGITS(), {"a": zeros(2, 3)}, {"b": zeros(2, 3)}, {}, "same structure"),
        (LOGITS(loss=["mse", None]), zeros(2, 3), zeros(2, 3), {}, "loss and student.*structure"),
        (LOGITS(schedules.Constant(2)), zeros(2, 3), zeros(2, 3), {}, "`temperature` is a sched"),
        (
            LOGITS(),
            [zeros(2, 3)] * 2,
            [zeros(2, 3)] * 2,
            {"sample_weight": [np.ones(2)] * 3},
            "`sample_weight`.*each of 2 outputs",
        ),
        (
            LOGITS(),
            zeros(2, 3),
            zeros(2, 3),
            {"sample_weight": np.ones((2, 3))},
            r"`sample_weight`.*shape that fits.*\(2,\)",
        ),
        (FEATURE(), zeros(2, 3), zeros(2, 4), {}, "same shape.*projector"),
        (FEATURE(["mse"]), zeros(2, 3), zeros(2, 3), {}, "loss and student.*structure"),
        (AT("a", "b"), zeros(2, 3), zeros(2, 3), {}, "`teacher_layer_name`.*has positions"),
        (AT("a", "b"), zeros(2, 3, 3), zeros(2, 3), {}, "`student_layer_name`.*pooling"),
        (AT("a", "b"), zeros(2, 4, 3), zeros(2, 2, 2, 3), {}, "same rank"),
        (DKD(), zeros(2, 3), zeros(2, 3), {}, "`y`.*labels.*received None.*LogitsDist"),
        (DKD(), zeros(2, 3), zeros(2, 4), {"y": [0, 1]}, "same classes"),
        (DKD(), zeros(2, 1), zeros(2, 1), {"y": np.zeros(2)}, "at least two classes"),
        (DKD(), zeros(2, 3), zeros(2, 3), {"y": np.zeros((2, 4))}, r"`y`.*one-hot \(B, 3\)"),
        (DKD(), zeros(2, 3), zeros(2, 3), {"y": np.zeros(5)}, r"`y`.*shape \(B\)"),
        (DKD(), zeros(2, 3), zeros(2, 3), {"y": np.zeros((2, 1, 1))}, "`y`.*labels of shape"),
        (DKD(), [zeros(2, 3)] * 2, [zeros(2, 3)] * 2, {}, "`output`.*several"),
        (DKD(output="a"), zeros(2, 3), zeros(2, 3), {}, "`output`.*received 'a'"),
        (DKD(output=0), zeros(2, 3), zeros(2, 3), {}, "`output`.*received 0"),
        (DKD(output=2), [zeros(2, 3)], [zeros(2, 3)], {}, "`output`.*received 2"),
        (
            DKD(alpha=schedules.Constant(1)),
            zeros(2, 3),
            zeros(2, 3),
            {"y": np.zeros(2)},
            "`alpha` is a schedule",
        ),
        (LOGITS(standardize=True), zeros(2, 2), zeros(2, 2), {}, "at least three.*1 and -1"),
        (LOGITS(1, "mse", standardize=True), zeros(2), zeros(2), {}, "at least three"),
        (DKD(standardize=True), zeros(2, 2), zeros(2, 2), {"y": [0, 1]}, "at least three"),
        (PEARSON(), zeros(2, 3), zeros(2, 4), {}, "same classes"),
        (PEARSON(), [zeros(2, 3)] * 2, [zeros(2, 3)] * 2, {}, "`output`.*several"),
        (TTM(), zeros(2, 1), zeros(2, 1), {}, "at least two classes"),
        (TTM(standardize=True), zeros(2, 2), zeros(2, 2), {}, "at least three"),
        (ERROR(), zeros(2, 3), zeros(2, 3), {}, "`y`.*labels.*received None.*LogitsDist"),
        (ERROR(), zeros(2, 3), zeros(2, 4), {"y": [0, 1]}, "same classes"),
        (ERROR(), zeros(2), zeros(2), {"y": [0, 1]}, "class scores of shape"),
        (ERROR(), zeros(2, 3), zeros(2, 3), {"y": np.zeros((2, 4))}, r"`y`.*one-hot \(B, 3\)"),
        (ERROR(), zeros(2, 3), zeros(2, 3), {"y": np.zeros(5)}, r"`y`.*shape \(B\)"),
        (ERROR(), zeros(2, 1), zeros(2, 1), {"y": np.zeros(5)}, r"`y`.*each score.*\(2, 1\)"),
        (ERROR(), [zeros(2, 3)] * 2, [zeros(2, 3)] * 2, {}, "`output`.*several"),
        (ERROR("a"), zeros(2, 3), zeros(2, 3), {}, "`output`.*received 'a'"),
        (RKD(), [zeros(2, 3)] * 2, [zeros(2, 3)] * 2, {}, "`output`.*several"),
        (RKD(output="b"), {"a": zeros(2, 3)}, {"a": zeros(2, 3)}, {}, "`output`.*received 'b'"),
        (
            RKD(),
            zeros(2, 3),
            zeros(2, 3),
            {"sample_weight": np.ones((2, 3))},
            "`sample_weight`.*shape that fits",
        ),
        (BOUNDED(), zeros(2, 3), zeros(2, 3), {}, "`y`.*received None"),
        (BOUNDED(), zeros(2, 3), zeros(2, 4), {"y": np.zeros((2, 3))}, "same shape.*4"),
        (BOUNDED(), zeros(2, 3), zeros(2, 3), {"y": np.zeros((2, 2))}, "`y`.*shape of the pred"),
        (BOUNDED(), zeros(2, 3), zeros(2, 3), {"y": np.zeros(2)}, "`y`.*shape of the pred"),
        (
            BOUNDED(mask=lambda y: y > 0),
            zeros(2, 3),
            zeros(2, 3),
            {"y": np.zeros((2, 3))},
            "`mask`.*one bool per prediction",
        ),
    ],
)
def test_bad_tensors(loss, teacher, student, more, words):
    with pytest.raises(ValueError, match=f"(?s){words}"):
        loss.compute_loss(teacher, student, **more)


@pytest.mark.parametrize("labels", [[0, 3], [-1, 0], [[0], [9]]])
@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("loss", [DKD(), ERROR()])
def test_labels_out_of_range(loss, labels, graph):
    call = loss.compute_loss
    if graph:
        call = tf.function(call)
    with pytest.raises(tf.errors.InvalidArgumentError, match="labels from 0 to 2"):
        call(zeros(2, 3), zeros(2, 3), y=np.array(labels))


def test_a_lambda_is_not_saved():
    for loss in (FEATURE(lambda t, s: t - s), BOUNDED(mask=lambda y: y > 0)):
        with pytest.raises(ValueError, match="Define a function"):
            loss.get_config()


@keras.saving.register_keras_serializable(package="test_loss_arguments")
def positive(y):
    return y[..., 0] > 0


@keras.saving.register_keras_serializable(package="test_loss_arguments")
def absolute(teacher, student):
    return tf.reduce_mean(tf.abs(teacher - student), -1)


EXAMPLES = [
    LOGITS(),
    LOGITS(np.float32(2.5), "mse", name="scores"),
    LOGITS(schedules.Linear(8, 2, 0, 10), keras.losses.KLDivergence(reduction="sum")),
    LOGITS(2, ["kl_divergence", keras.losses.Huber(0.5)]),
    LOGITS(2, ("categorical_crossentropy", None)),
    LOGITS(2, {"a": "binary_crossentropy", "nested": None}),
    LOGITS(2, absolute),
    FEATURE(),
    FEATURE(keras.losses.Huber(2.0), "backbone/block3", "stage2", None, "hint"),
    FEATURE("cosine_similarity", projector="always"),
    AT("stage3", "stage2"),
    AT(None, "stage2", name="where"),
    DKD(),
    DKD(schedules.Cosine(4, 2, 0, 9), schedules.Constant(1), schedules.Warmup(8.0, 5), "a", "n"),
    RKD(),
    RKD(25, 50.0, "a", "b", name="geometry"),
    RKD(0, 1, output=1),
    BOUNDED(),
    BOUNDED(schedules.Linear(0, 1, 0, 9), "boxes", positive, "bound"),
    ERROR(),
    ERROR("a", "wrong"),
    LOGITS(2, standardize=True),
    DKD(2, standardize=True),
    PEARSON(),
    PEARSON(schedules.Linear(4, 1, 0, 9), 2.0, schedules.Constant(0), "a", "n", True),
    TTM(),
    TTM(schedules.Linear(4, 1, 0, 9), False, 1, "n", True),
]


@pytest.mark.parametrize("loss", EXAMPLES, ids=lambda loss: loss.name)
def test_configuration_survives_json(loss):
    config = loss.get_config()
    again = type(loss).from_config(json.loads(json.dumps(config)))
    assert again.get_config() == config
    assert again.name == loss.name
    # And as Keras does it, which knows the class by its registered name.
    saved = json.loads(json.dumps(keras.saving.serialize_keras_object(loss)))
    restored = keras.saving.deserialize_keras_object(saved)
    assert type(restored) is type(loss) and restored.get_config() == config


def test_a_restored_loss_gives_the_same_value():
    rng = np.random.default_rng(0)
    teacher, student = (tf.constant(rng.normal(size=(2, 3, 4)), tf.float32) for _ in range(2))
    y = rng.normal(size=(2, 3, 4))
    for loss, outputs in [
        (EXAMPLES[2], (teacher, student)),
        (EXAMPLES[3], ([teacher] * 2, [student] * 2)),
        # JSON has no tuples: a restored list of losses fits a tuple of outputs.
        (EXAMPLES[4], ((teacher, teacher), (student, student))),
        (EXAMPLES[6], (teacher, student)),
        (EXAMPLES[18], ({"boxes": teacher}, {"boxes": student})),
    ]:
        again = type(loss).from_config(json.loads(json.dumps(loss.get_config())))
        values = [float(each.compute_loss(*outputs, y=y, step=3)) for each in (loss, again)]
        assert values[0] == values[1]


def test_a_projector_layer_is_saved():
    loss = FEATURE(projector=keras.layers.Dense(4, name="mine"))
    again = FEATURE.from_config(json.loads(json.dumps(loss.get_config())))
    assert isinstance(again.projector, keras.layers.Dense) and again.projector.name == "mine"


def test_names():
    assert AT("a", "b").name == "attention_transfer"
    assert LOGITS().name == "logits_distillation"
    assert DKD(name="dkd").name == "dkd"
