"""Knowledge-distillation losses: soft targets, hints, relations, regression and detection."""

from tfkd.losses.base import DistillationLoss, Elements, ElementwiseLoss
from tfkd.losses.decoupled import DecoupledDistillation
from tfkd.losses.detection import (
    CrossHeadDistillation,
    DenseAssignment,
    DenseConfidence,
    DenseLocalization,
    DenseSoftTarget,
    LocalizationDistillation,
    MultiBoxConfidence,
    MultiBoxLocalization,
    MultiBoxLoss,
    MultiBoxSelection,
    MultiBoxSoftTarget,
    multibox_objective,
    retina_net_objective,
    yolo_v8_objective,
)
from tfkd.losses.expected_error import ExpectedErrorLoss, curriculum_objective
from tfkd.losses.features import AttentionTransfer, FeatureDistillation
from tfkd.losses.heads import declare_outputs as declare_outputs  # no loss: not in __all__
from tfkd.losses.logits import LogitsDistillation
from tfkd.losses.pearson import PearsonDistillation
from tfkd.losses.regression import BoundedRegression
from tfkd.losses.relations import RelationalDistillation
from tfkd.losses.transformed_teacher import TransformedTeacherMatching

__all__ = [
    "AttentionTransfer",
    "BoundedRegression",
    "CrossHeadDistillation",
    "DecoupledDistillation",
    "DenseAssignment",
    "DenseConfidence",
    "DenseLocalization",
    "DenseSoftTarget",
    "DistillationLoss",
    "Elements",
    "ElementwiseLoss",
    "ExpectedErrorLoss",
    "FeatureDistillation",
    "LocalizationDistillation",
    "LogitsDistillation",
    "MultiBoxConfidence",
    "MultiBoxLocalization",
    "MultiBoxLoss",
    "MultiBoxSelection",
    "MultiBoxSoftTarget",
    "PearsonDistillation",
    "RelationalDistillation",
    "TransformedTeacherMatching",
    "curriculum_objective",
    "multibox_objective",
    "retina_net_objective",
    "yolo_v8_objective",
]
