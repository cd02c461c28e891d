"""Detector losses: what bad arguments say, and that configurations survive JSON."""

from __future__ import annotations

import json

import detection_toys as toys
import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from tfkd import losses, schedules
from tfkd.detection import Anchors, Matcher, TeacherBoxes
from tfkd.losses import (
    BoundedRegression,
    MultiBoxConfidence,
    MultiBoxLocalization,
    MultiBoxLoss,
    MultiBoxSelection,
    MultiBoxSoftTarget,
    multibox_objective,
)

ANCHORS = toys.ANCHORS
MATCHER = Matcher(ANCHORS)
SELECTION = MultiBoxSelection(MATCHER)
NAN = float("nan")
V, T = ValueError, TypeError
ALL_NONE = dict.fromkeys(("soft", "confidence", "bounded", "localization"))


def objective(**kwargs):
    return multibox_objective(MATCHER, **kwargs)


@pytest.mark.parametrize(
    "make, error, words",
    [
        (lambda: MultiBoxSelection(3), T, r"`matcher`: expected a callable, received 3 \(int\)"),
        (lambda: MultiBoxSelection(ANCHORS), T, "`matcher`.*callable.*Anchors"),
        (lambda: MultiBoxSelection(MATCHER, 0), V, "`negative_ratio`.*above 0, received 0"),
        (lambda: MultiBoxSelection(MATCHER, NAN), V, "`negative_ratio`.*nan"),
        (lambda: MultiBoxSelection(MATCHER, "3"), T, "`negative_ratio`.*'3'"),
        (lambda: MultiBoxSelection(MATCHER, 3, -1), V, "`min_negatives`.*at least 0.*-1"),
        (lambda: MultiBoxSelection(MATCHER, 3, 1.5), T, "`min_negatives`.*integer.*1.5"),
        (lambda: MultiBoxSelection(MATCHER, teacher_boxes=3), T, "`teacher_boxes`.*callable"),
        (
            lambda: MultiBoxSelection(None, teacher_boxes=TeacherBoxes(ANCHORS)),
            V,
            "`matcher`: expected a Matcher, with teacher_boxes, received None.*already matched",
        ),
        (
            lambda: MultiBoxSelection(MATCHER, scores="softmaks"),
            V,
            "`scores`.*'softmaks'.*Did you mean 'softmax'",
        ),
        (lambda: MultiBoxSelection(MATCHER, boxes=3), T, "`boxes`.*name of an output.*3"),
        (lambda: MultiBoxSelection(MATCHER, classes=None), T, "`classes`.*None"),
        (lambda: MultiBoxConfidence(MATCHER), T, "`selection`.*MultiBoxSelection.*Matcher"),
        (lambda: MultiBoxConfidence(SELECTION, -1), V, "`focal_gamma`.*at least 0.*-1"),
        (lambda: MultiBoxConfidence(SELECTION, 2, 1.5), V, "`focal_alpha`.*between 0 and 1.*1.5"),
        (lambda: MultiBoxConfidence(name=3), T, "`name`.*3"),
        (lambda: MultiBoxLocalization(3), T, "`selection`.*3"),
        (lambda: MultiBoxSoftTarget(0), V, "`temperature`.*above 0, received 0"),
        (lambda: MultiBoxSoftTarget("2"), V, "`temperature`.*'2'"),
        (
            lambda: MultiBoxSoftTarget(schedules.Linear(2, 0, 0, 9)),
            V,
            "`temperature`.*above 0.*reaches",
        ),
        (lambda: MultiBoxSoftTarget(1, 0), V, "`background_weight`.*above 0.*received 0"),
        (lambda: MultiBoxSoftTarget(1, 1, None), T, "`foreground_weight`.*None"),
        (lambda: BoundedRegression(selection=3), T, "`selection`.*MultiBoxSelection.*3"),
        (
            lambda: BoundedRegression(selection=SELECTION, output="boxes"),
            V,
            "`output`: expected None with a selection, received 'boxes'",
        ),
        (
            lambda: BoundedRegression(selection=SELECTION, mask=len),
            V,
            "`mask`: expected None with a selection.*len",
        ),
        (lambda: MultiBoxLoss(ANCHORS), T, "`selection`.*MultiBoxSelection or.*Matcher.*Anchors"),
        (lambda: MultiBoxLoss(Matcher), T, "`selection`.*Matcher"),
        (lambda: MultiBoxLoss(None), T, "`selection`.*None"),
        (lambda: MultiBoxLoss(MATCHER, -1), V, "`confidence_weight`.*at least 0.*-1"),
        (lambda: MultiBoxLoss(MATCHER, 1, NAN), V, "`localization_weight`.*nan"),
        (lambda: MultiBoxLoss(MATCHER, 0, 0), V, "`localization_weight`.*_weight above 0"),
        (lambda: multibox_objective(ANCHORS), T, "`selection`.*Anchors"),
        (lambda: objective(preset="sorce"), V, "`preset`.*'sorce'.*Did you mean 'source'"),
        (lambda: objective(weights={"sof": 1}), V, "`weights`.*'sof'.*Did you mean 'soft'"),
        (lambda: objective(weights={"soft": -1}), V, "`weights`.*at least 0.*-1"),
        (lambda: objective(weights={"soft": "1"}), T, "`weights`.*'1'"),
        (lambda: objective(weights=[1, 1, 1, 1]), T, "`weights`.*dict of terms"),
        (lambda: objective(weights=ALL_NONE), V, "`weights`.*at least one term"),
        (lambda: objective(temperature=0), V, "`temperature`.*above 0"),
        (lambda: objective(background_weight=-1), V, "`background_weight`.*above 0"),
        (lambda: objective(margin=-1), V, "`margin`.*at least 0"),
        (lambda: objective(hint="layer"), V, r"`hint`: expected \(teacher's layer, student's"),
        (lambda: objective(hint=("a", 3)), T, "`student_layer_name`.*3"),
        (lambda: objective(hint=("a", "b"), hint_weight=-1), V, "`hint_weight`.*at least 0"),
    ],
)
def test_bad_arguments(make, error, words):
    with pytest.raises(error, match=words) as caught:
        make()
    assert type(caught.value) is error


Y = toys.objects(2, 3)
OUT = toys.outputs(2)
OTHER = toys.outputs(2, priors=toys.PRIORS + 1)
MORE = toys.outputs(2, scores=toys.CLASSES + 2)
SIGMOID = MultiBoxSelection(MATCHER, None, scores="sigmoid")


@pytest.mark.parametrize(
    "loss, teacher, student, y, words",
    [
        (MultiBoxConfidence(SELECTION), OUT, OUT, None, r"`y`.*'boxes'.*received None"),
        (MultiBoxConfidence(), OUT, OUT, Y, r"`selection`.*another loss.*Confidence\(selection="),
        (
            BoundedRegression(),
            OUT,
            OUT,
            Y,
            "`output`.*several.*'boxes'",
        ),
        (
            MultiBoxLocalization(SELECTION),
            OUT,
            OUT["boxes"],
            Y,
            r"`student`: expected a model with a dict of outputs, with \['boxes', 'classes'\]",
        ),
        (
            MultiBoxLocalization(SELECTION),
            OUT,
            {"box": OUT["boxes"], "classification": OUT["classes"]},
            Y,
            "`student`.*'classification'.*retina_net_objective",
        ),
        (MultiBoxSoftTarget(selection=SELECTION), None, OUT, Y, "`teacher`.*dict.*None"),
        (
            MultiBoxSoftTarget(selection=SELECTION),
            OTHER,
            OUT,
            Y,
            r"same priors and classes: the teacher's.*\(2, 9, 3\).*\(2, 8, 3\).*same anchors",
        ),
        (
            MultiBoxSoftTarget(selection=SELECTION),
            MORE,
            OUT,
            Y,
            r"same priors and classes: the teacher's.*\(2, 8, 4\).*\(2, 8, 3\)",
        ),
        (
            BoundedRegression(selection=SELECTION),
            OTHER,
            OUT,
            Y,
            r"same shape.*\(2, 9, 4\).*\(2, 8, 4\).*same anchors",
        ),
        (
            MultiBoxConfidence(SELECTION),
            OTHER,
            OTHER,
            Y,
            "`matcher`.*student's 9 priors, received targets for 8.*anchors that the model",
        ),
        (
            MultiBoxConfidence(SELECTION),
            OUT,
            {**OUT, "classes": OTHER["classes"]},
            Y,
            r"`student`: expected scores for the 8 priors that have offsets.*\(2, 9, 3\)",
        ),
        (
            MultiBoxConfidence(MultiBoxSelection(None)),
            OUT,
            OUT,
            Y,
            "`matcher`.*student's 8 priors.*matcher=None only if",
        ),
        (
            MultiBoxConfidence(MultiBoxSelection(None)),
            OUT,
            OUT,
            Y["boxes"],
            r"`y`: expected a target for every prior.*\(2, 3, 4\).*Matcher makes them",
        ),
        (
            MultiBoxConfidence(MultiBoxSelection(lambda y: y["boxes"])),
            OUT,
            OUT,
            Y,
            "`matcher`: expected a target for every prior",
        ),
        (
            MultiBoxConfidence(SELECTION, 2.0),
            OUT,
            OUT,
            Y,
            r"`focal_gamma`.*softmax.*\(2.0, None\).*scores='sigmoid'",
        ),
        (
            MultiBoxConfidence(SELECTION, 0.0, 0.25),
            OUT,
            OUT,
            Y,
            "`focal_gamma`.*no focal_alpha.*0.25",
        ),
    ],
)
def test_bad_tensors(loss, teacher, student, y, words):
    with pytest.raises(ValueError, match=f"(?s){words}"):
        loss.compute_loss(teacher, student, y=y)


@pytest.mark.parametrize(
    "selection, graph", [(SELECTION, True), (SELECTION, False), (SIGMOID, False)]
)
def test_a_class_that_the_student_does_not_score(selection, graph):
    classes = 2 if selection is SELECTION else 3
    y = {"boxes": np.float32([[[0, 0, 0.5, 0.5]]]), "classes": np.int32([[classes]])}
    call = MultiBoxConfidence(selection).compute_loss
    if graph:
        call = tf.function(call)
    words = f"(?s)classes from 0 to {classes - 1}, as the student scores {classes}.*{classes}.*Numb"
    with pytest.raises(tf.errors.InvalidArgumentError, match=words):
        call(None, toys.outputs(1), y=y)


CUSTOM = Anchors([2], sizes=[[(0.5, 0.5), (0.25, 0.75)]], clip=True)
FULL = MultiBoxSelection(
    Matcher(CUSTOM, np.float32(0.6), np.float32(0.3), (0.2, 0.2, 0.4, 0.4)),
    np.float32(2.5),
    3,
    TeacherBoxes(CUSTOM, np.float32(0.25), "missing", 0.25, 0.5, 7),
    "softmax",
)
EXAMPLES = [
    SELECTION,
    MultiBoxSelection(Matcher(ANCHORS.priors), None, scores="sigmoid", boxes="a", classes="b"),
    MultiBoxSelection(None),
    FULL,
    MultiBoxConfidence(),
    MultiBoxConfidence(SIGMOID, np.float32(2.0), np.float32(0.25), "focal"),
    MultiBoxLocalization(FULL, "where"),
    MultiBoxSoftTarget(),
    MultiBoxSoftTarget(schedules.Linear(4, 1, 0, 9), np.float32(1.5), 0.5, FULL, "soft"),
    BoundedRegression(schedules.Linear(0, 1, 0, 9), selection=FULL),
    MultiBoxLoss(MATCHER),
    MultiBoxLoss(FULL, np.float32(0.5), 2, "labels"),
]


@pytest.mark.parametrize("item", EXAMPLES, ids=lambda item: type(item).__name__)
def test_configuration_survives_json(item):
    saved = json.loads(json.dumps(keras.saving.serialize_keras_object(item)))
    again = keras.saving.deserialize_keras_object(saved)
    assert type(again) is type(item) and again.get_config() == item.get_config()
    assert json.loads(json.dumps(item.get_config())) == json.loads(json.dumps(again.get_config()))
    assert getattr(again, "name", None) == getattr(item, "name", None)


def test_every_public_class_is_tested_here():
    tested = {type(item).__name__ for item in EXAMPLES} | {"multibox_objective"}
    assert {name for name in losses.__all__ if "multibox" in name.lower()} <= tested


def test_restored_losses_give_the_same_values():
    outputs = toys.outputs(3), toys.outputs(3, 1)
    y = toys.objects(3, seed=1)
    for item in (EXAMPLES[6], EXAMPLES[8], EXAMPLES[9]):
        again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(item))
        values = [float(one.compute_loss(*outputs, y=y, step=4)) for one in (item, again)]
        assert values[0] == values[1] != 0


class Saved:
    """A matcher of the user's that can't be saved, and one that can."""

    def __call__(self, y):
        return MATCHER(y)


@keras.saving.register_keras_serializable(package="test_multibox_arguments")
class Savable(Saved):
    def get_config(self):
        return {}

    @classmethod
    def from_config(cls, config):
        return cls(**config)


def test_matchers_of_the_user():
    for matcher in (lambda y: MATCHER(y), Saved()):
        with pytest.raises(ValueError, match="`matcher`.*can be saved.*get_config.*register"):
            MultiBoxSelection(matcher).get_config()
    with pytest.raises(ValueError, match="`teacher_boxes`.*can be saved"):
        MultiBoxSelection(MATCHER, teacher_boxes=lambda y, t: y).get_config()
    selection = MultiBoxSelection.from_config(MultiBoxSelection(Savable()).get_config())
    assert isinstance(selection.matcher, Savable)


def names_and_weights(**kwargs):
    made = objective(**kwargs)
    assert made["student_loss_weight"] == 0.0
    names = [loss.name for loss in made["distillation_losses"]]
    return names, made["distillation_loss_weights"], made["distillation_losses"]


NAMES = [
    "multibox_soft_target",
    "multibox_confidence",
    "bounded_regression",
    "multibox_localization",
]


@pytest.mark.parametrize(
    "preset, weights, temperature, background",
    [
        ("source", [0.3, 0.7, 0.5, 1.0], 2.0, 1.5),
        ("chen", [0.5, 0.5, 0.5, 1.0], 1.0, 1.5),
    ],
)
def test_presets(preset, weights, temperature, background):
    names, found, made = names_and_weights(preset=preset)
    assert names == NAMES and found == weights
    assert (made[0].temperature, made[0].background_weight) == (temperature, background)
    assert made[0].foreground_weight == 1.0 and made[2].margin == 0.0
    assert all(loss.selection is made[0].selection for loss in made)


def test_the_default_leaves_soft_targets_unweighted():
    names, _, made = names_and_weights()
    assert names == NAMES and made[0].background_weight == 1.0


def test_what_an_objective_may_change():
    linear = schedules.Linear(0.0, 1.0, 0, 5)
    names, weights, made = names_and_weights(
        weights={"soft": linear, "bounded": None},
        temperature=schedules.Constant(3.0),
        background_weight=2.0,
        hint=("there", "here"),
        hint_weight=0.25,
    )
    assert names == [NAMES[0], NAMES[1], NAMES[3], "hint"]
    assert weights == [linear, 1.0, 1.0, 0.25]
    assert made[0].background_weight == 2.0 and made[0].temperature(0) == 3.0
    # Chen et al.'s adapter is there at equal width too.
    assert made[3].projector == "always"
    assert (made[3].teacher_layer_name, made[3].student_layer_name) == ("there", "here")
    assert names_and_weights(margin=2.0)[2][2].margin == 2.0
    own = MultiBoxSelection(MATCHER, 1.0)
    assert multibox_objective(own)["distillation_losses"][0].selection is own
