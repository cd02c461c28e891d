"""Knowledge distillation: the Distiller, with the interface of `keras.distillation`.

distiller.py     the Distiller: constructor, compile, train_step, test_step
terms.py         loss terms of a step: each replica's share of the global mean
output_kinds.py  whether models return logits or probabilities
balancing.py     factors of the losses' weights, for callbacks.LossBalance
projectors.py    trained projections between features of different shape
targets.py       checks of labels and sample weights
validation.py    checks of models, losses and data before the first step
variables.py     variables of a step, created before it is traced
drift.py         warning when a student loses its agreement with the teacher
sample.py        which data sets can be read a second time
saving.py        files and checkpoints
"""

from tfkd.distillation.distiller import Distiller
from tfkd.losses import DistillationLoss, FeatureDistillation, LogitsDistillation

__all__ = ["DistillationLoss", "Distiller", "FeatureDistillation", "LogitsDistillation"]
