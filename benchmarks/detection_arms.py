"""The arms of detection_bccd.py, whose docstring describes them."""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Arm:
    """What differs between runs.

    Attributes:
        preset: of `tfkd.losses.multibox_objective`; None: no teacher.
        weights: what differs from the preset.
        options: further arguments of the objective; without a preset, of `teacher_labels`.
        where: what the teacher's boxes are used for; None: nothing.
        once: whether they are found once, in the whole images, or in every step.
        threshold: score from which they are objects; None: fitted for each class.
        ignore_from: score from which the others are ignored; None: they are background.
        labelled: training images with labels; None: all.
        short: as many epochs of its own images, not as many steps.
    """

    preset: str | None = "default"
    weights: dict[str, Any] = dataclasses.field(default_factory=dict)
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    where: str | None = None
    once: bool = True
    threshold: float | None = 0.5
    ignore_from: float | None = None
    labelled: int | None = None
    short: bool = False


HINT = {"hint": ("stage3", "stage3")}
HALF = {"labelled_share": 0.5}
ONLY_SOFT = {"soft": 0.5, "confidence": 1.0, "bounded": None, "localization": 1.0}
ARMS = {
    "alone": Arm(None),
    "default": Arm(),
    "source": Arm("source"),
    "boxes": Arm(weights=ONLY_SOFT, where="everywhere"),
    "40 alone": Arm(None, labelled=40),
    "40, boxes": Arm(weights=ONLY_SOFT, where="unlabelled", labelled=40),
    "40 alone, short": Arm(None, labelled=40, short=True),
    "40, boxes only": Arm(None, where="unlabelled", labelled=40),
    "40, soft": Arm(weights=ONLY_SOFT, labelled=40),
    "40, fitted": Arm(None, where="unlabelled", labelled=40, threshold=None),
    "40, fitted, half": Arm(None, options=HALF, where="unlabelled", labelled=40, threshold=None),
    "40, ignored": Arm(None, where="unlabelled", labelled=40, ignore_from=0.1),
    "40, fitted, ignored": Arm(
        None, where="unlabelled", labelled=40, threshold=None, ignore_from=0.1
    ),
    "40, fitted, soft": Arm(weights=ONLY_SOFT, where="unlabelled", labelled=40, threshold=None),
    "10 alone": Arm(None, labelled=10),
    "10, boxes": Arm(weights=ONLY_SOFT, where="unlabelled", labelled=10),
    "10, boxes only": Arm(None, where="unlabelled", labelled=10),
    "10, fitted": Arm(None, where="unlabelled", labelled=10, threshold=None),
    "chen": Arm("chen"),
    "source, plain": Arm("source", options={"background_weight": 1.0}),
    "soft": Arm(weights=ONLY_SOFT),
    "bounded": Arm(weights={**ONLY_SOFT, "soft": None, "bounded": 0.5}),
    "boxes only": Arm(None, where="everywhere"),
    "hint": Arm(weights={**ONLY_SOFT, "soft": None}, options=HINT),
    "chen, hint": Arm("chen", options=HINT),
    "soft 0.25": Arm(weights={**ONLY_SOFT, "soft": 0.25}),
    "soft 1": Arm(weights={**ONLY_SOFT, "soft": 1.0}),
    "bounded 0.25": Arm(weights={**ONLY_SOFT, "soft": None, "bounded": 0.25}),
    "labels less": Arm(weights={**ONLY_SOFT, "soft": None, "confidence": 0.7}),
    "boxes, in the step": Arm(weights=ONLY_SOFT, where="everywhere", once=False),
    "40, boxes in the step": Arm(weights=ONLY_SOFT, where="unlabelled", labelled=40, once=False),
}

FEW = (
    "40 alone",
    "40, boxes only",
    "40, fitted",
    "40, fitted, half",
    "40, ignored",
    "40, fitted, ignored",
)
