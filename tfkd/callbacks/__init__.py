"""Keras callbacks for distillation, curricula, pruning, detection metrics and TensorBoard."""

from typing import Any

from tfkd.callbacks.curriculum_update import CurriculumUpdate
from tfkd.callbacks.detection_report import DetectionReport
from tfkd.callbacks.teacher_check import TeacherCheck
from tfkd.callbacks.tensorboard import TensorBoard

__all__ = ["CurriculumUpdate", "DetectionReport", "FilterDecay", "TeacherCheck", "TensorBoard"]


def __getattr__(name: str) -> Any:
    """Imports `FilterDecay` on first use: it imports tfmot, which takes a second."""
    if name == "FilterDecay":
        from tfkd.callbacks.filter_decay import FilterDecay

        return FilterDecay
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
