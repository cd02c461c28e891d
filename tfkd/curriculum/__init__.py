"""Easy examples first: how hard each is, how fast the rest comes, and batches of it.

difficulty.py   scores: what the teacher, the student or you find hard
pacing/         the share of the data in play, as a function of the step or of a metric
ordering.py     from scores to an order with balanced classes
curriculum.py   the batches
stages.py       what changes from one stage of a training to the next
"""

from tfkd.curriculum import difficulty, pacing
from tfkd.curriculum.curriculum import Curriculum
from tfkd.curriculum.stages import Plateau, Reached, Stage

__all__ = ["Curriculum", "Plateau", "Reached", "Stage", "difficulty", "pacing"]
