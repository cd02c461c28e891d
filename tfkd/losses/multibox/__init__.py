"""Losses of a detector with priors (SSD's MultiBox), and of its student; of keras-cv's too."""

from tfkd.losses.multibox.dense import DenseSoftTarget, LocalizationDistillation
from tfkd.losses.multibox.dense_labels import (
    DenseAssignment,
    DenseConfidence,
    DenseLocalization,
)
from tfkd.losses.multibox.keras_cv import retina_net_objective, yolo_v8_objective
from tfkd.losses.multibox.labels import MultiBoxLoss
from tfkd.losses.multibox.objective import multibox_objective
from tfkd.losses.multibox.selection import MultiBoxSelection, Selected, hard_negatives
from tfkd.losses.multibox.terms import (
    MultiBoxConfidence,
    MultiBoxLocalization,
    MultiBoxSoftTarget,
)

__all__ = [
    "DenseAssignment",
    "DenseConfidence",
    "DenseLocalization",
    "DenseSoftTarget",
    "LocalizationDistillation",
    "MultiBoxConfidence",
    "MultiBoxLocalization",
    "MultiBoxLoss",
    "MultiBoxSelection",
    "MultiBoxSoftTarget",
    "Selected",
    "hard_negatives",
    "multibox_objective",
    "retina_net_objective",
    "yolo_v8_objective",
]
