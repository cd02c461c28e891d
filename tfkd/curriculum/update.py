"""Callback that updates a curriculum's adaptive pace and difficulty scores, and logs them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras
from numpy.typing import ArrayLike

from tfkd import checks
from tfkd.curriculum import difficulty
from tfkd.curriculum.curriculum import Curriculum
from tfkd.summaries import WritingCallback
from tfkd.types import Path


class CurriculumUpdate(WritingCallback):
    """Updates an adaptive pace, rescores the examples, and logs the curriculum's state.

    At the end of an epoch it adds `fraction`, the share of the data in play, to the logs,
    for the callbacks after this one: list it before TensorBoard. An `AdaptivePace` is
    updated with the epoch's logs. With `refresh_every`, all examples are scored again by
    the student every so many epochs, and those that it now finds hard come last.

    Args:
        curriculum: the `tfkd.curriculum.Curriculum` that yields the training batches.
        refresh_every: epochs between two scorings; None: the scores stay.
        score: the scorer, a function (model, x, y, preprocess=..., progress=False) →
            (N,) scores, higher is harder; `difficulty.student_loss` by default.
        start_step: the step of the first batch.
        log_dir: a folder for TensorBoard, in which the run `curriculum` shows a histogram
            of the difficulty of the examples of each epoch, the fraction and the size of
            the pool, by epoch; None writes nothing. Of several workers only the chief
            writes.

    Attributes:
        history: list of (epoch, fraction) at the end of each epoch.

    Raises:
        TypeError, ValueError: for a bad argument; in training, if the metric of an
            adaptive pace is not in the logs, or the scores are not (N,) finite numbers.

    Example:
        >>> import numpy as np, tf_keras as keras, tfkd
        >>> from tfkd.curriculum import Curriculum
        >>> x, y = np.random.default_rng(0).normal(size=(32, 4)), np.arange(32) % 2
        >>> paced = Curriculum((x, y), x[:, 0], tfkd.schedules.Linear(0.5, 1.0, end_step=8), 4)
        >>> model = keras.Sequential([keras.layers.Dense(2, input_shape=(4,))])
        >>> model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        >>> update = tfkd.callbacks.CurriculumUpdate(paced)
        >>> history = model.fit(paced.batches(), steps_per_epoch=paced.steps_per_epoch, epochs=2,
        ...                     verbose=0, callbacks=[update]).history
        >>> history["fraction"]
        [0.9375, 1.0]
    """

    def __init__(
        self,
        curriculum: Curriculum,
        refresh_every: int | None = None,
        score: Callable[..., ArrayLike] | None = None,
        start_step: int = 0,
        log_dir: Path | None = None,
    ):
        super().__init__(log_dir, "curriculum")
        kind = "a tfkd.curriculum.Curriculum"
        self.curriculum = checks.instance("curriculum", curriculum, Curriculum, kind)
        if refresh_every is not None:
            checks.positive_int("refresh_every", refresh_every)
            if len(curriculum.data) < 2 and score is None:
                fix = "Pass score=, or a curriculum of (x, y)."
                raise checks.value_error("refresh_every", "labels to score by", None, fix)
        self.refresh_every = refresh_every
        self.score = checks.function("score", score or difficulty.student_loss)
        self._step = checks.non_negative_int("start_step", start_step)
        self.history: list[tuple[int, float]] = []
        self._seen = 0

    def begin_at(self, step: int) -> None:
        """Sets the first step of the next epoch, of a training that begins or is resumed."""
        self._step = checks.non_negative_int("step", step)

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Resets the count of this epoch's batches."""
        self._seen = 0

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        """Counts batches; `batch` is the last one of an execution of several steps."""
        self._seen = batch + 1

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Logs the fraction, then updates the pace and the scores."""
        fraction = self.curriculum.fraction(self._step + max(self._seen - 1, 0))
        self.history.append((epoch, fraction))
        if logs is not None:
            logs["fraction"] = fraction
        if self._writes():
            self._write(epoch, fraction)
        self._step += self._seen
        if self.curriculum.is_adaptive:
            self.curriculum.pace.update(logs)
        if self.refresh_every and (epoch + 1) % self.refresh_every == 0:
            self._refresh()

    def _refresh(self) -> None:
        x, *others = tf.nest.map_structure(np.asarray, self.curriculum.data)
        student = getattr(self.model, "student", self.model)
        options = {"preprocess": self.curriculum.preprocess, "progress": False}
        scores = self.score(student, x, *others[:1], **options)
        self.curriculum.update_difficulty(scores)

    def _write(self, epoch: int, fraction: float) -> None:
        steps = range(self._step, self._step + self._seen)
        seen = np.concatenate([self.curriculum.indices(step) for step in steps] or [[]])
        scores = self.curriculum.difficulty[seen.astype(np.int64)]
        with self._summaries(epoch):
            tf.summary.histogram("curriculum/difficulty_seen", scores)
            tf.summary.scalar("curriculum/fraction", fraction)
            pool = self.curriculum.pool_size(self._step + max(self._seen - 1, 0))
            tf.summary.scalar("curriculum/pool", pool)


def log_dir_of(callbacks: Iterable[Any]) -> str | None:
    """The log folder of the first TensorBoard callback, or None."""
    boards = (one for one in callbacks if isinstance(one, keras.callbacks.TensorBoard))
    return next((board.log_dir for board in boards), None)
