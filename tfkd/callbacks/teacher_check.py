"""Callback that warns when the student has become better than its teacher."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
import tensorflow as tf
import tf_keras as keras
from numpy.typing import ArrayLike

from tfkd import checks, example_inputs
from tfkd.data.labels import REGRESSION, read
from tfkd.distillation.distiller import Distiller
from tfkd.teachers import output_kinds
from tfkd.teachers.forward import Teachers, mean_probability, mean_value, to_logits
from tfkd.types import Data

# "logits", "softmax", … of each output of a model, or None.
Kinds: TypeAlias = list[str | None] | None


class TeacherCheck(keras.callbacks.Callback):
    """Compares student and teacher on validation data, and warns if the student is better.

    A frozen copy that was not trained to convergence is a poor teacher: self-distillation
    from it lowers the accuracy. At the end of an epoch this callback adds `teacher_score`
    and `student_score` to the logs, and warns once if the student is better: then train
    the teacher longer, or give the distillation less weight.

    Args:
        data: (x, y), or batches of these, in any form of `tfkd.example_inputs`; of a data
            set of `tfkd.data` the test part. y are class numbers, one-hot, and what else
            `tfkd.report.score` takes, for the default score.
        score: a function (y, outputs) → one number per example, higher is better, from
            NumPy arrays. None: the accuracy (with one output: of its probability rounded
            to 0 or 1; with several labels per example: 1 if all are right), or minus the
            absolute error for regression. The probabilities of several teachers are
            averaged, or their outputs if `score` is a function.
        margin: by how much the student must be better, in units of the score (with
            score=None, 0.01 is one percentage point).
        batch_size: examples per batch.
        every: epochs between checks.

    Raises:
        ValueError, TypeError: for a bad argument; at the start of training if the model
            is not a `tfkd.Distiller`, or has several outputs.

    Example:
        >>> import numpy as np, tf_keras as keras, tfkd
        >>> def net():
        ...     return keras.Sequential([keras.layers.Dense(3, input_shape=(4,))])
        >>> x, y = np.eye(4, dtype="float32"), np.array([0, 1, 2, 0])
        >>> model = tfkd.Distiller(net(), net(), tfkd.losses.LogitsDistillation())
        >>> model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        >>> check = tfkd.callbacks.TeacherCheck((x, y), margin=1.0)
        >>> logs = model.fit(x, y, verbose=0, callbacks=[check]).history
        >>> 0 <= logs["teacher_score"][0] <= 1
        True
    """

    def __init__(
        self,
        data: Data,
        score: Callable[[np.ndarray, np.ndarray], ArrayLike] | None = None,
        margin: float = 0.0,
        batch_size: int = 256,
        every: int = 1,
    ):
        super().__init__()
        found = example_inputs.arrays("data", data, part="test", prepared=True)
        if not (example_inputs.is_array(found.x) and example_inputs.is_array(found.y)):
            raise checks.type_error("data", "(x, y), one array of each, or such batches", data)
        self.x, self.y = found.x, np.asarray(found.y)
        self.score = None if score is None else checks.function("score", score)
        self.margin = checks.non_negative("margin", margin)
        self.batch_size = checks.positive_int("batch_size", batch_size)
        self.every = checks.positive_int("every", every)
        self._warned = False
        self._kinds: tuple[Kinds, Sequence[Kinds]] | None = None
        self._teacher_score = float("nan")

    def on_train_begin(self, logs: dict[str, float] | None = None) -> None:
        """Scores the teacher, which does not change in training."""
        if not isinstance(self.model, Distiller):
            raise ValueError(
                "`TeacherCheck`: expected to be given to the `fit` of a tfkd.Distiller, received "
                f"a {type(self.model).__name__}, which has no teacher. Leave it out."
            )
        self._kinds = self._find_kinds() if self.score is None else None
        self._teacher_score = self._score(self._teacher_outputs)

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Scores the student; warns the first time that it is better than the teacher."""
        if (epoch + 1) % self.every:
            return
        teacher = self._teacher_score
        student = self._score(self._student_outputs)
        if logs is not None:
            logs["teacher_score"], logs["student_score"] = teacher, student
        if student > teacher + self.margin and not self._warned:
            self._warned = True
            checks.warn(
                f"TeacherCheck: after epoch {epoch + 1} the student is better than its teacher, "
                f"{student:.4g} against {teacher:.4g}. From here on the teacher may hold it back. "
                "Train the teacher to its end first, or give the distillation less weight "
                "(student_loss_weight, distillation_loss_weights: a schedule can do it)."
            )

    def _teacher_outputs(self, x: tf.Tensor) -> tf.Tensor:
        """The mean of the teachers' outputs, or of their probabilities for the default score."""
        finals, _ = self.model._teacher_feature_extractor(x)
        if any(tf.nest.is_nested(final) for final in finals):
            raise ValueError(
                "`TeacherCheck`: expected a model with one output, received one with several. "
                "Compare them with evaluate instead."
            )
        if self._kinds is None:
            return mean_value(finals)
        scores = [to_logits(f, k) for f, k in zip(finals, self._kinds[1], strict=True)]
        return mean_probability(scores, [scores[0].shape[-1] == 1])

    def _student_outputs(self, x: tf.Tensor) -> tf.Tensor:
        outputs = self.model.student(x, training=False)
        return outputs if self._kinds is None else to_logits(outputs, self._kinds[0])

    def _find_kinds(self) -> tuple[Kinds, Sequence[Kinds]]:
        """What student and teachers return, logits or probabilities."""
        term = self.model._agreement_term()
        if term is not None and term.student_kinds is not None:
            return term.student_kinds, term.teacher_kinds
        teachers, sample = self.model._teacher_feature_extractor, output_kinds.examples(self.x)
        student = self.model.student
        runs = [("student", student, lambda x: student(x, training=False))]
        if isinstance(teachers, Teachers):
            runs += [("teacher", t.model, teachers.runner(n)) for n, t in enumerate(teachers.taps)]
        found = [(side, output_kinds.look(model, run, sample)) for side, model, run in runs]
        kinds = [output_kinds.settle(side, one, output_kinds.by_size(one)) for side, one in found]
        return kinds[0], kinds[1:] or [None] * len(teachers.taps)

    def _score(self, outputs: Callable[[tf.Tensor], tf.Tensor]) -> float:
        run = tf.function(outputs, reduce_retracing=True)
        scores, kept = [], []
        for first in range(0, len(self.x), self.batch_size):
            part = slice(first, first + self.batch_size)
            found = np.asarray(run(tf.convert_to_tensor(self.x[part])))
            if self.score is None:
                kept.append(found)
            else:
                scores.append(np.asarray(self.score(self.y[part], found), "float64"))
        if self.score is None:
            # All at once: the task is recognized from the values of all labels and outputs.
            scores = [right(self.y, np.concatenate(kept), threshold=0.0)]
        return float(np.concatenate([np.atleast_1d(s).reshape(-1) for s in scores]).mean())


def right(y: np.ndarray, outputs: np.ndarray, threshold: float | None = None) -> np.ndarray:
    """Scores examples: 1 or 0 in classification, minus the absolute error in regression.

    The shape is that of class numbers, or (B, 1) for outputs of one unit. `threshold` is as
    in `tfkd.report.score`: 0 for logits.
    """
    found = read(y, outputs, threshold=threshold)
    if found.task == REGRESSION:
        values = -np.abs(found.outputs - found.labels).mean(-1)
    else:
        values = found.right.astype(np.float64)
    places = outputs.shape if outputs.shape[-1] == 1 else outputs.shape[:-1]
    return values.reshape(places)
