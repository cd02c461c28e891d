"""Difficulty scores of examples: teacher's loss, margin or entropy, student's loss, sizes.

Every function returns a `Difficulty`: one number per example, higher is harder. Those
that evaluate a model make one pass over the data; with `path=` the scores are cached in
a file, which a later run with the same data, model and settings reads instead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike

from tfkd import checks, example_inputs
from tfkd.curriculum import counting
from tfkd.curriculum.scores import Difficulty, scored
from tfkd.curriculum.scoring import Measure, Models, Scorer
from tfkd.data.label_forms import class_numbers
from tfkd.teachers.forward import as_list
from tfkd.types import Data, Path, Tensor

__all__ = [
    "Difficulty",
    "from_function",
    "length",
    "object_count",
    "student_loss",
    "teacher_entropy",
    "teacher_loss",
    "teacher_margin",
]

FilePath = Path | None
Preprocess = Callable[[tf.Tensor], tf.Tensor] | None


def teacher_loss(
    teacher: Models,
    data: Data,
    labels: Tensor | None = None,
    *,
    batch_size: int = 256,
    preprocess: Preprocess = None,
    path: FilePath = None,
    progress: bool = True,
) -> Difficulty:
    """The teacher's cross-entropy with the label: −log p_t(y).

    If labels are noisy, examples with wrong labels are the hardest.

    Args:
        teacher: a tf_keras or Keras 3 model, a restored SavedModel, a callable on
            tensors, or a list of these, whose probabilities are averaged. It may end
            in class scores (logits), a softmax, or one sigmoid; it runs with
            `training=False`.
        data: the examples, in any form of `tfkd.example_inputs` with a fixed order. If
            the number of the teacher's inputs is unknown, and for `teacher_entropy`, a
            tuple of arrays is several inputs unless labels are read from it.
        labels: class numbers (N,) or (N, 1), or one-hot rows (N, C); None: those in
            `data`.
        batch_size: examples per forward pass.
        preprocess: a function of a batch of inputs, as in `tfkd.data.batches`.
        path: a file for the scores. If it holds those of the same data, weights and
            settings, it is read and the model is not run; otherwise it is written.
            Functions are compared by their code and the values that they refer to.
        progress: whether to show a progress bar, in a terminal or notebook.

    Returns:
        A `Difficulty` in nats, of N scores.

    Raises:
        TypeError, ValueError: for no examples, lengths that differ, labels outside the
            classes, a model that does not score classes or whose output is NaN; if
            `path` is a file of another kind.

    Warns:
        UserWarning: if the file at `path` was made from other data, models or settings,
            which it names; and if an output is recognized as probabilities only by its
            values.

    Reference:
        Hacohen and Weinshall 2019, https://arxiv.org/abs/1904.03626

    Example:
        >>> import numpy as np, tensorflow as tf
        >>> from tfkd.curriculum import difficulty
        >>> teacher = lambda x: tf.math.log(x)  # class scores whose softmax is x
        >>> x = np.array([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]])
        >>> difficulty.teacher_loss(teacher, x, np.array([0, 2]), progress=False).scores.round(4)
        array([0.6931, 2.3026])
    """
    options = (batch_size, preprocess, path, progress)
    return _of_model("teacher_loss", "teacher", teacher, (data, labels), _crossentropy, options)


def teacher_margin(
    teacher: Models,
    data: Data,
    labels: Tensor | None = None,
    *,
    batch_size: int = 256,
    preprocess: Preprocess = None,
    path: FilePath = None,
    progress: bool = True,
) -> Difficulty:
    """The teacher's negative margin: −(p_t(y) − the largest p_t of the other classes).

    It is −1 where the teacher is certain of the label, and 1 where it is certain of
    another class. Arguments and errors are those of `teacher_loss`.

    Returns:
        A `Difficulty` of N scores in [−1, 1].

    Example:
        >>> import numpy as np, tensorflow as tf
        >>> from tfkd.curriculum import difficulty
        >>> x, y = np.array([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]]), np.array([0, 2])
        >>> difficulty.teacher_margin(tf.math.log, x, y, progress=False).scores.round(4)
        array([-0.25,  0.7 ])
    """
    options = (batch_size, preprocess, path, progress)
    return _of_model("teacher_margin", "teacher", teacher, (data, labels), _margin, options)


def teacher_entropy(
    teacher: Models,
    data: Data,
    *,
    batch_size: int = 256,
    preprocess: Preprocess = None,
    path: FilePath = None,
    progress: bool = True,
) -> Difficulty:
    """The entropy of the teacher's prediction, without labels: −Σ_c p_t(c) log p_t(c).

    Arguments and errors are those of `teacher_loss`.

    Returns:
        A `Difficulty` in nats, of N scores in [0, log C].

    Example:
        >>> import numpy as np, tensorflow as tf
        >>> from tfkd.curriculum import difficulty
        >>> x = np.array([[0.5, 0.5], [0.999, 0.001]])
        >>> difficulty.teacher_entropy(tf.math.log, x, progress=False).scores.round(4)
        array([0.6931, 0.0079])
    """
    options = (batch_size, preprocess, path, progress)
    return _of_model("teacher_entropy", "teacher", teacher, (data, None), _entropy, options)


def student_loss(
    student: Models,
    data: Data,
    labels: Tensor | None = None,
    *,
    batch_size: int = 256,
    preprocess: Preprocess = None,
    path: FilePath = None,
    progress: bool = True,
) -> Difficulty:
    """The student's current cross-entropy with the label: −log p_s(y).

    Use it for scores that follow the training (self-paced learning). The student runs with
    `training=False` and is not changed. Arguments and errors are those of `teacher_loss`.

    Returns:
        A `Difficulty` in nats, of N scores.

    Reference:
        Kumar et al. 2010, "Self-paced learning for latent variable models", NeurIPS

    Example:
        >>> import numpy as np, tf_keras as keras
        >>> from tfkd.curriculum import difficulty
        >>> student = keras.Sequential([keras.layers.Dense(2, input_shape=(3,))])
        >>> student.set_weights([np.eye(3, 2), np.zeros(2)])
        >>> x, y = np.array([[2.0, 0, 0], [0, 0, 0]]), np.array([0, 1])
        >>> difficulty.student_loss(student, x, y, progress=False).scores.round(4)
        array([0.1269, 0.6931])
    """
    options = (batch_size, preprocess, path, progress)
    return _of_model("student_loss", "student", student, (data, labels), _crossentropy, options)


def length(data: ArrayLike, padding: int = 0, *, path: FilePath = None) -> Difficulty:
    """The length of each text: its number of tokens without padding, or of words.

    Args:
        data: token numbers (N, L), a list of N sequences, or N strings.
        padding: the number of the padding token.
        path: as in `teacher_loss`.

    Returns:
        A `Difficulty` of N counts.

    Raises:
        TypeError, ValueError: if data are none of these, or empty.

    Reference:
        Platanios et al. 2019, https://arxiv.org/abs/1903.09848

    Example:
        >>> from tfkd.curriculum import difficulty
        >>> difficulty.length(["a film", "not a very good film"]).scores.tolist()
        [2.0, 5.0]
        >>> difficulty.length([[7, 3, 0], [2, 0, 0]]).scores.tolist()
        [2.0, 1.0]
    """
    checks.integer("padding", padding, -(2**63), "an integer")  # of int64
    parts = {"data": data, "setting": padding}
    return scored("length", parts, path, lambda: counting.lengths(data, padding))


def object_count(
    labels: ArrayLike | Mapping[str, ArrayLike],
    padding: float = -1,
    *,
    mask: ArrayLike | None = None,
    path: FilePath = None,
) -> Difficulty:
    """The number of objects in each image.

    Args:
        labels: boxes or class numbers of N images: a list of N arrays; a RaggedTensor; an
            array (N, M, 4) of boxes or (N, M) of classes, padded; or a dict with
            "boxes" or "classes" of one of these forms, as in keras-cv.
        padding: the value of padded classes, and of all four numbers of a padded box.
        mask: bool (N, M), True for an object, instead of `padding`.
        path: as in `teacher_loss`.

    Returns:
        A `Difficulty` of N counts.

    Raises:
        TypeError, ValueError: if labels or mask are none of these, or empty.

    Example:
        >>> import numpy as np
        >>> from tfkd.curriculum import difficulty
        >>> difficulty.object_count([np.zeros((3, 4)), np.zeros((0, 4))]).scores.tolist()
        [3.0, 0.0]
        >>> classes = np.array([[2, 7, -1], [5, -1, -1]])
        >>> difficulty.object_count({"classes": classes}).scores.tolist()
        [2.0, 1.0]
    """
    checks.finite("padding", padding)
    parts = {"data": labels, "setting": [padding, mask]}
    return scored("object_count", parts, path, lambda: counting.objects(labels, padding, mask))


def from_function(
    function: Callable[..., ArrayLike],
    data: Any,
    labels: Tensor | None = None,
    *,
    path: FilePath = None,
) -> Difficulty:
    """Scores by a function of your own.

    Args:
        function: `function(x)`, or `function(x, labels)` if labels are given, → N finite
            numbers, higher is harder. It is called once, with all examples.
        data: any argument of the function, such as a list of texts. The first axis of
            arrays is that of the examples; batches of a data set are concatenated.
        labels: the second argument of the function, or None.
        path: as in `teacher_loss`.

    Returns:
        A `Difficulty` of N scores; `kind` is "function".

    Raises:
        TypeError: if `function` is not callable, or does not return numbers.
        ValueError: if it does not return one number for each example, or NaN.

    Example:
        >>> import numpy as np
        >>> from tfkd.curriculum import difficulty
        >>> images = np.array([[[0.0, 9.0]], [[4.0, 5.0]]])
        >>> difficulty.from_function(lambda x: x.std(axis=(1, 2)), images).scores.tolist()
        [4.5, 0.5]
    """
    checks.function("function", function)
    x = data
    is_listed = isinstance(x, (list, tuple)) and not any(hasattr(leaf, "shape") for leaf in x)
    if not is_listed:
        example_inputs.in_order("data", data)
        x, y, _ = example_inputs.arrays("data", data, pairs=labels is None)
        labels = y if labels is None else labels
    count = len(x) if is_listed else example_inputs.length("data", x)
    arrays = [array for array in (x, labels) if array is not None]

    def compute():
        found = np.asarray(function(*arrays))
        if found.shape in ((count, 1), (count,)) and found.dtype.kind in "iubf":
            return found.reshape(count)
        expected = f"a function that returns {count} numbers, one per example"
        raise checks.value_error("function", expected, found)

    parts = {"data": x, "labels": labels, "function": function}
    return scored("function", parts, path, compute)


def _of_model(
    kind: str,
    side: str,
    model: Models,
    given: tuple[Data, Tensor | None],
    measure: Measure,
    options: tuple[Any, ...],
) -> Difficulty:
    (data, labels), (batch_size, preprocess, path, progress) = given, options
    checks.positive_int("batch_size", batch_size)
    checks.instance("progress", progress, bool, "True or False")
    scorer = Scorer(side, model, measure, preprocess)
    example_inputs.in_order("data", data)
    # `preprocess` may take another number of inputs than the model.
    known = 0 if preprocess else len(example_inputs.inputs_of(as_list(model)[0]))
    pairs = labels is None and measure is not _entropy
    x, y, _ = example_inputs.arrays("data", data, known or None, pairs=pairs)
    if measure is not _entropy:
        count = example_inputs.length("data", x)
        labels = class_numbers("labels", y if labels is None else labels, count)
    parts = {"data": x, "labels": labels, side: model, "preprocess": preprocess}
    return scored(kind, parts, path, lambda: scorer(x, labels, batch_size, progress))


def _crossentropy(log_p: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    return -tf.gather(log_p, labels, batch_dims=1)


def _margin(log_p: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    p = tf.exp(log_p)
    own = tf.one_hot(labels, tf.shape(p)[-1], True, False)
    others = tf.where(own, tf.constant(-1.0, p.dtype), p)
    return tf.reduce_max(others, -1) - tf.gather(p, labels, batch_dims=1)


def _entropy(log_p: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    # The limit of p · log p at p = 0 is 0, but 0 · -inf is NaN.
    return -tf.reduce_sum(tf.math.multiply_no_nan(log_p, tf.exp(log_p)), -1)
