"""One training in stages, which change values, data and structure.

distiller.py    the ProgressiveDistiller: runs the stages
settings.py     losses and weights that follow the stage
values.py       numbers that follow the stage without a new compilation
structure.py    Prune, CutLayers, Quantize, Decay
freezing.py     layers that are not trained for a while
carrying.py     optimizers that outlive a change of structure
feeding.py      what a stage trains on
watching.py     logs and promotion
rehearsing.py   all stages tried on a copy, before training
backup.py       a training that can be killed
"""

from tfkd.progressive.distiller import ProgressiveDistiller
from tfkd.progressive.structure import CutLayers, Decay, Prune, Quantize, Structural

__all__ = [
    "CutLayers",
    "Decay",
    "ProgressiveDistiller",
    "Prune",
    "Quantize",
    "Structural",
]
