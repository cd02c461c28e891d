"""The stages of a recipe and their settings, as frozen dataclasses.

Learning rates are those of Adam, fall to zero along a cosine, and are small enough for
networks that others have trained, or chosen by a trial: a large rate, or batch statistics of
a few hundred images, ruins a pretrained network within an epoch.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from tfkd.recipes.fields import (
    choice,
    flag,
    number,
    optional,
    setting,
    several,
    text,
    whole,
)

METHODS = ("hard", "decay")
LOSSES = ("soft_targets", "dist")
# Correlations of fewer scores say nothing, or only a sign.
DIST_CLASSES = 3
# From this share of the multiply-accumulates on, and with fewer training examples than these,
# filters decay unless the recipe says it. With 8,000 images the decay was measured to be ahead
# at 80 %, and level at 50 and 65 %; with 20,000 level, and with 50,000 behind at 80 %. Where
# it is not ahead, cutting at once is faster.
DECAY_FROM, DECAY_BELOW = 0.75, 20_000

_RATE = number(0, open_low=True)
_SHARE = number(0, 1)
_FREEZE = "keep batch normalizations as they are; null: where there is little data"
_LOSS = (
    "soft_targets: softened outputs equal the teacher's; dist: they correlate with them, within "
    f"each example and each class, for {DIST_CLASSES} classes or more; null: "
)
_VIEWS = "augmented versions of each example, in turn; 0: a new one in each epoch; 1: none"


@dataclasses.dataclass(frozen=True)
class TrainTeacher:
    """Trains a teacher on the labels."""

    stage: ClassVar[str] = "train_teacher"
    does: ClassVar[str] = "train a teacher on the labels"

    network: str | None = setting(
        optional(text("the name of a network, such as 'resnet20'")),
        None,
        "a network of tfkd.models; null: one that suits the data",
    )
    epochs: int = setting(whole(1), 30, "passes over the training data")
    learning_rate: float = setting(_RATE, 2e-3, "peak of Adam's learning rate")
    views: int = setting(whole(0), 0, _VIEWS)


@dataclasses.dataclass(frozen=True)
class Distil:
    """Trains a student with the teacher's help."""

    stage: ClassVar[str] = "distil"
    does: ClassVar[str] = "train a student on the labels and the teacher's outputs"

    student: str | None = setting(
        optional(text("the name of a network, such as 'resnet8'")),
        None,
        "a network of tfkd.models, or a .keras file; null: one that suits the data",
    )
    epochs: int = setting(whole(1), 30, "passes over the training data")
    learning_rate: float = setting(_RATE, 2e-3, "peak of Adam's learning rate")
    loss: str | None = setting(optional(choice(*LOSSES)), None, _LOSS + "dist where it can be")
    temperature: float = setting(number(0, open_low=True), 4.0, "softens both models' outputs")
    label_weight: float = setting(_SHARE, 0.1, "weight of the labels; the rest is the teacher's")
    views: int = setting(whole(0), 0, _VIEWS)


@dataclasses.dataclass(frozen=True)
class Prune:
    """Removes filters, with the unpruned model as teacher."""

    stage: ClassVar[str] = "prune"
    does: ClassVar[str] = "remove filters, and train with the original as teacher"

    method: str | None = setting(
        optional(choice(*METHODS)),
        None,
        "hard: cut at once; decay: to zero in a quarter of the epochs; null: decay if at least "
        f"{DECAY_FROM:.0%} of the multiply-accumulates go, fewer than {DECAY_BELOW:,} examples are "
        "trained on, and there are epochs for it",
    )
    macs_reduction: float | None = setting(
        optional(number(0, 1, open_low=True, open_high=True)),
        None,
        "share of the multiply-accumulates to remove; null: what the budget needs",
    )
    epochs: int = setting(whole(0), 10, "passes over the training data")
    learning_rate: float | None = setting(
        optional(_RATE), None, "peak of Adam's learning rate; null: the best of a short trial"
    )
    loss: str | None = setting(optional(choice(*LOSSES)), None, _LOSS + "soft_targets")
    temperature: float = setting(number(0, open_low=True), 4.0, "softens both models' outputs")
    label_weight: float = setting(_SHARE, 0.3, "weight of the labels; the rest is the teacher's")
    criterion: str = setting(
        choice("l1", "l2", "geometric_median", "random"), "l2", "importance of a filter"
    )
    residual: str = setting(choice("inner", "coupled"), "inner", "see tfkd.pruning.plan")
    round_to: int | None = setting(
        optional(whole(1)), None, "kept widths are multiples of it; null: 8, or less if need be"
    )
    ignore: tuple[str, ...] = setting(
        several(text("text"), "a list of names of layers"), (), "layers that keep their filters"
    )
    latency_table: str | None = setting(
        optional(text("the path of a file")), None, "measured times, kept for further runs"
    )
    latency_command: str | None = setting(
        optional(text("a shell command with {model}")), None, "see tfkd.report.LayerTimes"
    )
    freeze_batch_norm: bool | None = setting(optional(flag()), None, _FREEZE)
    views: int = setting(whole(0), 0, _VIEWS)


@dataclasses.dataclass(frozen=True)
class Quantize:
    """Rounds weights and activations to 8 bits, and trains with the rounding."""

    stage: ClassVar[str] = "quantize"
    does: ClassVar[str] = "round to 8 bits, calibrate, and train with the original as teacher"

    epochs: int = setting(whole(0), 2, "passes with rounding; 0: calibration alone")
    learning_rate: float = setting(_RATE, 5e-5, "peak of Adam's learning rate")
    temperature: float = setting(number(0, open_low=True), 4.0, "softens both models' outputs")
    label_weight: float = setting(_SHARE, 0.1, "weight of the labels; the rest is the teacher's")
    calibration: int = setting(whole(1), 300, "training examples that set the ranges")
    method: str = setting(
        choice("minmax", "percentile", "mse"), "minmax", "see tfkd.quantization.calibrate"
    )
    fallback: str = setting(
        choice("output_only", "noop", "error"), "output_only", "see tfkd.quantization.quantize"
    )
    skip: tuple[str, ...] = setting(
        several(text("text"), "a list of names of layers"), (), "layers that stay in float"
    )
    freeze_batch_norm: bool = setting(flag(), True, "keep batch normalizations as they are")
    views: int = setting(whole(0), 0, _VIEWS)


@dataclasses.dataclass(frozen=True)
class Export:
    """Writes the files, and compares each with its model by running it."""

    stage: ClassVar[str] = "export"
    does: ClassVar[str] = "write the files, and compare each with its model by running it"

    input: str | None = setting(
        optional(choice("uint8", "int8", "float32")),
        None,
        "dtype that a .tflite file takes; null: uint8 for images in 8 bits, else float32",
    )
    examples: int = setting(whole(2), 200, "test examples on which file and model are compared")


@dataclasses.dataclass(frozen=True)
class Verify:
    """Measures original and files, and judges them by the gates."""

    stage: ClassVar[str] = "verify"
    does: ClassVar[str] = "measure accuracy, latency and size, and judge by the gates"

    runs: int = setting(whole(5), 200, "calls of each model whose time is taken")
    threads: int = setting(whole(1), 1, "threads of one call")
    seconds: float = setting(number(0, open_low=True), 20.0, "limit of each measurement")


@dataclasses.dataclass(frozen=True)
class Report:
    """Writes the page of the run."""

    stage: ClassVar[str] = "report"
    does: ClassVar[str] = "write the page"

    pictures: int = setting(whole(0), 12, "examples that changed class, with their pictures")


Stage = TrainTeacher | Distil | Prune | Quantize | Export | Verify | Report
STAGES: tuple[type[Any], ...] = (TrainTeacher, Distil, Prune, Quantize, Export, Verify, Report)
BY_NAME = {cls.stage: cls for cls in STAGES}
NAMES = tuple(BY_NAME)
