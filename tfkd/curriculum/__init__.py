"""Curriculum learning: difficulty scores, pacing functions, and batches of easy examples first.

difficulty.py    scores by the teacher, the student, the size or your own function
scoring.py       the inference pass of a model over the examples
counting.py      numbers of words and objects
scores.py        the scores and their file
pace.py          the share of the data in use, by a schedule or a validation metric
ordering.py      ranking by score, with balanced classes
curriculum.py    the batches
metrics.py       the direction and value of a metric
stages.py        the settings of the stages of a training, and when one ends
"""

from tfkd.curriculum import difficulty
from tfkd.curriculum.curriculum import Curriculum
from tfkd.curriculum.pace import AdaptivePace
from tfkd.curriculum.stages import Plateau, Reached, Stage

__all__ = ["AdaptivePace", "Curriculum", "Plateau", "Reached", "Stage", "difficulty"]
