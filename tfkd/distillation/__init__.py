"""Training a student with a teacher's help; the namespace of `keras.distillation`.

distiller.py    the Distiller: constructor, compile, train_step, test_step
terms.py        what one step computes: each loss's share of the global batch
projectors.py   the trained map between features of different shape
validation.py   what must hold before a step runs
saving.py       files and checkpoints
"""

from tfkd.distillation.distiller import Distiller
from tfkd.losses import DistillationLoss, FeatureDistillation, LogitsDistillation

__all__ = ["DistillationLoss", "Distiller", "FeatureDistillation", "LogitsDistillation"]
