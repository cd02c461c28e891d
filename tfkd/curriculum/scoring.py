"""Scores examples by one inference pass of a model over data in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import tensorflow as tf
import tf_keras as keras

from tfkd import checks, example_inputs
from tfkd.networks.accept import check_finite
from tfkd.teachers import output_kinds
from tfkd.teachers.forward import Teachers, as_list, mean_probability, progress_bar, to_logits
from tfkd.types import Structure, Tensor

Measure: TypeAlias = "Callable[[tf.Tensor, tf.Tensor | None], tf.Tensor]"
Preprocess: TypeAlias = "Callable[[Structure], Structure]"
# A model or a function of a batch, or several whose probabilities are averaged.
Model: TypeAlias = "keras.Model | Callable[..., Structure]"
Models: TypeAlias = "Model | Sequence[Model]"
# Whether each output of a model holds logits or probabilities; None if that is unknown.
Kinds: TypeAlias = "list[str | None] | None"


class Scorer:
    """Scores examples by the predictions of a model, or by the mean of several.

    It holds a traced function: scoring again with the same Scorer, after the model has
    been trained further, does not trace again.

    Args:
        side: "teacher" or "student", for messages.
        models: a model, or a list of them, of any kind that a Distiller accepts.
        measure: (log-probabilities float64 (B, C), labels int64 (B,) or None) → scores (B,).
        preprocess: None, or a function of the batch x.
    """

    def __init__(
        self, side: str, models: Models, measure: Measure, preprocess: Preprocess | None = None
    ):
        self.side = side
        models = as_list(models, side)
        for one in models:
            check_finite(side, one)
        self._models = Teachers(models, [])
        self._measure = measure
        self._preprocess = preprocess
        if preprocess is not None:
            checks.function("preprocess", preprocess)
        self._function: Any = None
        self._kinds: Sequence[Kinds] | None = None  # of each model

    def __call__(
        self, x: Structure, labels: np.ndarray | None, batch_size: int, progress: bool
    ) -> np.ndarray:
        """Float64 scores (N,), from one pass.

        Args:
            x: an array (N, ...), or a dict, list or tuple of them.
            labels: int64 class numbers (N,), or None.
            batch_size: examples per forward pass; the last may have fewer.
            progress: whether to show a progress bar, in a terminal or notebook.

        Raises:
            ValueError: for labels outside the classes, or a model whose output is NaN.
        """
        count = example_inputs.length("data", x)
        if self._kinds is None:
            self._kinds = self._find_kinds(output_kinds.examples(x))
        scores = np.empty(count, np.float64)
        bar = progress_bar(-(-count // batch_size), progress)
        for start in range(0, count, batch_size):
            part = slice(start, min(start + batch_size, count))
            batch = tf.nest.map_structure(lambda array, part=part: _tensor(array[part]), x)
            given = () if labels is None else (tf.constant(labels[part]),)
            values, classes = self._run(batch, *given)
            if start == 0 and labels is not None:
                _check_labels(labels, int(classes))
            scores[part] = values.numpy()
            self._check(scores[part], start)
            if bar is not None:
                bar.add(1)
        return scores

    def _run(self, *args: Structure) -> tuple[tf.Tensor, tf.Tensor]:
        if self._function is None:
            # With an open first axis the last, smaller batch does not trace again.
            specs = tf.nest.map_structure(
                lambda tensor: tf.TensorSpec([None, *tensor.shape[1:]], tensor.dtype), args
            )
            self._function = tf.function(self._scores, input_signature=specs)
        return self._function(*args)

    def _inputs(self, x: Structure) -> Structure:
        if self._preprocess is not None:
            x = self._preprocess(x)
        return tf.nest.map_structure(_single, x)

    def _find_kinds(self, sample: Structure) -> Sequence[Kinds]:
        """Determines whether each model returns logits or probabilities."""
        kinds = []
        for number, taps in enumerate(self._models.taps):
            teach = self._models.runner(number)

            def run(x: Structure, teach: Callable[[Structure], Structure] = teach) -> Structure:
                return teach(self._inputs(x))

            found = output_kinds.look(taps.model, run, sample)
            kinds.append(output_kinds.settle(self.side, found, output_kinds.by_size(found)))
        return kinds

    def _scores(self, x: Structure, labels: tf.Tensor | None = None) -> tuple[tf.Tensor, tf.Tensor]:
        finals, _ = self._models(self._inputs(x))
        log_p = log_probabilities(self.side, finals, self._kinds)
        classes = tf.shape(log_p, out_type=tf.int64)[-1]
        if labels is not None:
            # Labels outside raise an error later, when the number of classes is known.
            labels = tf.clip_by_value(labels, 0, classes - 1)
        return self._measure(log_p, labels), classes

    def _check(self, scores: np.ndarray, start: int) -> None:
        finite = np.isfinite(scores)
        if not finite.all():
            bad = int(np.argmin(finite))
            raise ValueError(
                f"`{self.side}`: expected finite outputs, received NaN or infinity for example "
                f"{start + bad}. Check its input and the model's weights: "
                "`preprocess` must scale data as for training."
            )


def _tensor(values: Tensor) -> tf.Tensor:
    return tf.convert_to_tensor(values)


def _single(tensor: tf.Tensor) -> tf.Tensor:
    """Casts float64 to float32, as Keras's `fit` and `predict` do with NumPy arrays."""
    return tf.cast(tensor, tf.float32) if tensor.dtype == tf.float64 else tensor


def log_probabilities(
    side: str, finals: list[tf.Tensor], kinds: Sequence[Kinds] | None = None
) -> tf.Tensor:
    """Returns float64 (B, C) log-probabilities of the classes, from the models' outputs.

    A final softmax or sigmoid is inverted; a single output is the log-odds of the second
    of two classes. In float32 all examples of which the teacher is confident would be
    equally easy, since the least 1 − p above 0 is 6e-8.

    Args:
        side: "teacher" or "student", for messages.
        finals: (B, C), one per model.
        kinds: the kinds of each model's outputs, from `output_kinds.settle`.
    """
    for final in finals:
        if tf.nest.is_nested(final) or len(final.shape) != 2:
            shape = tf.nest.map_structure(lambda leaf: tuple(leaf.shape), final)
            fix = (
                "Pass a function of x that returns the scores of one output, such as "
                f"lambda x: model(x)[{next(iter(final))!r}], or use from_function."
                if isinstance(final, Mapping)
                else "Pass a function of x that returns the scores, or use from_function."
            )
            raise checks.value_error(side, "one output of class scores, (B, C)", shape, fix)
    is_sigmoid = finals[0].shape[-1] == 1
    pairs = zip(finals, kinds or [None] * len(finals), strict=True)
    scores = mean_probability([to_logits(final, kind) for final, kind in pairs], [is_sigmoid])
    scores = tf.cast(scores, tf.float64)
    if is_sigmoid:
        return tf.concat([tf.math.log_sigmoid(-scores), tf.math.log_sigmoid(scores)], -1)
    return tf.nn.log_softmax(scores)


def _check_labels(labels: np.ndarray, classes: int) -> None:
    if labels.max() >= classes:
        bad = int(np.argmax(labels >= classes))
        fix = f"That of example {bad} is {labels[bad]}. Number the classes from 0."
        expected = f"class numbers from 0 to {classes - 1}, as the model scores"
        raise checks.value_error("labels", expected, labels, fix)
