"""Keras callbacks for distillation, curricula, pruning, detection metrics and TensorBoard."""

from typing import Any

from tfkd.callbacks.detection_report import DetectionReport
from tfkd.callbacks.loss_balance import LossBalance
from tfkd.callbacks.student_checkpoint import StudentCheckpoint
from tfkd.callbacks.teacher_check import TeacherCheck
from tfkd.callbacks.tensorboard import TensorBoard
from tfkd.curriculum.update import CurriculumUpdate

__all__ = [
    "CurriculumUpdate",
    "DetectionReport",
    "FilterDecay",
    "LossBalance",
    "SparsityRegularizer",
    "StudentCheckpoint",
    "TeacherCheck",
    "TensorBoard",
]


def __getattr__(name: str) -> Any:
    """Imports callbacks for pruning on first use: they import tfmot, which takes a second."""
    if name == "FilterDecay":
        from tfkd.callbacks.filter_decay import FilterDecay

        return FilterDecay
    if name == "SparsityRegularizer":
        from tfkd.callbacks.sparsity_regularizer import SparsityRegularizer

        return SparsityRegularizer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
