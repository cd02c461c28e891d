"""Progressive distillation: one training in stages that change settings, data and structure.

distiller.py    the ProgressiveDistiller: runs the stages
settings.py     losses and loss weights that depend on the stage
values.py       scheduled values that depend on the stage, without recompiling
structure.py    Prune, CutLayers, Quantize, Decay
freezing.py     layers frozen in a stage
carrying.py     transfer of the optimizer's state to a changed student
stage_data.py   training data of a stage
watching.py     logs and promotion
rehearsing.py   dry run of all stages on a copy, before training
backup.py       checkpoints for resuming an interrupted training
"""

from tfkd.progressive.distiller import ProgressiveDistiller
from tfkd.progressive.structure import CutLayers, Decay, Prune, Quantize, Structural

__all__ = ["CutLayers", "Decay", "ProgressiveDistiller", "Prune", "Quantize", "Structural"]
