"""Losses of a detector with priors (SSD's MultiBox), and of its student."""

from tfkd.losses.multibox.labels import MultiBoxLoss
from tfkd.losses.multibox.objective import multibox_objective
from tfkd.losses.multibox.selection import MultiBoxSelection, Selected, hard_negatives
from tfkd.losses.multibox.terms import (
    MultiBoxConfidence,
    MultiBoxLocalization,
    MultiBoxSoftTarget,
)

__all__ = [
    "MultiBoxConfidence",
    "MultiBoxLocalization",
    "MultiBoxLoss",
    "MultiBoxSelection",
    "MultiBoxSoftTarget",
    "Selected",
    "hard_negatives",
    "multibox_objective",
]
