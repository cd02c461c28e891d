"""Stages and promotion rules: what they accept, and when they promote."""

from __future__ import annotations

import pytest
import tf_keras as keras

from tfkd import schedules
from tfkd.curriculum import Plateau, Reached, Stage


def logs(name, values):
    return [{name: value} for value in values]


def test_reached_looks_at_the_last_epoch_in_the_right_direction():
    assert Reached("val_accuracy", 0.8)(logs("val_accuracy", [0.9, 0.8]))
    assert not Reached("val_accuracy", 0.8)(logs("val_accuracy", [0.9, 0.79]))
    assert Reached("val_loss", 0.5)(logs("val_loss", [0.9, 0.4]))
    assert not Reached("val_loss", 0.5, "max")(logs("val_loss", [0.9, 0.4]))


@pytest.mark.parametrize(
    ("values", "promotes"),
    [
        ([1.0], False),
        ([1.0, 1.0], False),
        ([1.0, 1.0, 1.0], True),
        ([1.0, 1.1, 1.1, 1.0], True),
        ([1.0, 1.0, 0.9, 0.9], False),
        ([1.0, 0.99, 0.98], True),  # below min_delta
    ],
)
def test_plateau_counts_epochs_without_improvement(values, promotes):
    assert Plateau("val_loss", patience=2, min_delta=0.05)(logs("val_loss", values)) is promotes


def test_a_missing_metric_is_named():
    with pytest.raises(ValueError, match="Did you mean 'val_loss'"):
        Plateau("val_los")([{"val_loss": 1.0}])


def test_a_stage_takes_every_kind_of_value():
    stage = Stage(
        3,
        "all",
        fraction=schedules.Root(0.2, 1.0, end_step=10),
        temperature={"a": 2.0, "b": schedules.Linear(4, 1, 0, 5)},
        student_loss_weight=schedules.Constant(0.5),
        distillation_loss_weights={"a": 0.0},
        learning_rate=keras.optimizers.schedules.CosineDecay(0.1, 10),
        freeze=["a*", "b"],
        promote=Reached("loss", 0.1),
        structure=lambda model: model,
    )
    assert stage.freeze == ("a*", "b") and len(stage.structure) == 1
    assert Stage(1, freeze="a").freeze == ("a",) and Stage(1).structure == ()
    assert stage.title(2) == "stage 2 ('all')" and Stage(1).title(0) == "stage 0"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"epochs": 0}, "`epochs`"),
        ({"name": 3}, "`name`"),
        ({"fraction": 0}, "`fraction`: expected a fraction above 0"),
        ({"fraction": "half"}, "`fraction`"),
        ({"fraction": schedules.Linear(0.5, 1.1, 0, 5)}, "`fraction`.*at most 1.*The schedule"),
        ({"temperature": 0}, "`temperature`"),
        ({"temperature": {"a": -1}}, "`temperature`"),
        ({"student_loss_weight": 1.5}, "`student_loss_weight`"),
        ({"distillation_loss_weights": 0.5}, "`distillation_loss_weights`"),
        ({"distillation_loss_weights": [-1]}, "`distillation_loss_weights`"),
        ({"learning_rate": -0.1}, "`learning_rate`"),
        ({"learning_rate": "fast"}, "`learning_rate`"),
        ({"freeze": 3}, "`freeze`"),
        ({"promote": 0.9}, "`promote`"),
        ({"structure": "prune"}, "`structure`"),
        ({"decay": {"filter_rate": 0.5}}, "`decay`: expected a tfkd.progressive.Decay"),
    ],
)
def test_bad_arguments(arguments, words):
    with pytest.raises((ValueError, TypeError), match=words):
        Stage(**{"epochs": 1, **arguments})


@pytest.mark.parametrize(
    "make",
    [
        lambda: Reached("a", float("nan")),
        lambda: Plateau("a", 0),
        lambda: Plateau("a", mode="up"),
        lambda: Reached(3, 1.0),
    ],
)
def test_bad_rules(make):
    with pytest.raises((ValueError, TypeError), match="expected"):
        make()
