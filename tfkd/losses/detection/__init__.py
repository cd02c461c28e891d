"""Detection losses and distillation for SSD (MultiBox), RetinaNet and YOLOv8 heads."""

from tfkd.losses.detection.anchor_free import DenseSoftTarget, LocalizationDistillation
from tfkd.losses.detection.anchor_free_labels import (
    DenseAssignment,
    DenseConfidence,
    DenseLocalization,
)
from tfkd.losses.detection.cross_head import CrossHeadDistillation
from tfkd.losses.detection.keras_cv import retina_net_objective, yolo_v8_objective
from tfkd.losses.detection.multibox_loss import MultiBoxLoss
from tfkd.losses.detection.objective import multibox_objective
from tfkd.losses.detection.selection import MultiBoxSelection, Selected, hard_negatives
from tfkd.losses.detection.terms import MultiBoxConfidence, MultiBoxLocalization, MultiBoxSoftTarget

__all__ = [
    "CrossHeadDistillation",
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
