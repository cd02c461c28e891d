"""Easy examples first: how hard each is, how fast the rest comes, and batches of it.

difficulty.py    what the teacher, the student or you find hard
scoring.py       one pass of a model over the examples
counting.py      sizes: words and objects
scores.py        the scores, and their file
pace.py          the share of the data in play, as a schedule or as a metric has it
ordering.py      from scores to an order with balanced classes
curriculum.py    the batches
metrics.py       which way a metric is better
stages.py        what changes from one stage of a training to the next
"""

from tfkd.curriculum import difficulty
from tfkd.curriculum.curriculum import Curriculum
from tfkd.curriculum.pace import AdaptivePace
from tfkd.curriculum.stages import Plateau, Reached, Stage

__all__ = ["AdaptivePace", "Curriculum", "Plateau", "Reached", "Stage", "difficulty"]
