"""Drift warning: detects that training moves a student away from its teacher.

A trained student that is distilled on a few hundred images can get worse while its
training logs improve: these use batch statistics, whereas inference uses the moving
statistics of batch normalization, which then follow few images. So teacher and student
are compared in inference mode, on a small sample that is read once before training.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import tf_keras as keras

from tfkd import checks
from tfkd.distillation.sample import is_repeatable
from tfkd.distillation.saving import is_quantized
from tfkd.distillation.terms import is_number, sigmoids
from tfkd.keras_internals import BatchNormalizationBase
from tfkd.losses.base import mask_of
from tfkd.networks.layer_parts import flat_layers
from tfkd.teachers.forward import as_list
from tfkd.teachers.precomputed import split
from tfkd.types import Structure

EXAMPLES, FEWEST, BATCH = 256, 32, 64
BYTES = 64 << 20  # largest sample kept in memory, 64 MiB
# Only students that start closer than this are watched; at 1 they are no better than chance.
_NEAR = 0.5
# Smallest loss of agreement, or increase of the relative distance, that is warned of.
_MARGIN = 0.02


class Distance(NamedTuple):
    """Distance of a student from its teacher.

    Attributes:
        relative: KL divergence from the teacher's distribution, divided by that of the
            uniform distribution; for other outputs the squared error divided by the
            teacher's variance.
        agreement: fraction of examples for which both predict the same class, or None.
    """

    relative: float
    agreement: float | None

    def is_beyond(self, start: Distance, count: int) -> bool:
        """Whether this is significantly further than `start`: by more than a few examples."""
        if self.agreement is None or start.agreement is None:
            return self.relative > max(start.relative + _MARGIN, 1.25 * start.relative)
        lost = start.agreement - self.agreement
        return self.relative > start.relative and lost >= max(_MARGIN, 3 / count) - 1e-9


class DriftWatch(keras.callbacks.Callback):
    """Measures the distance before training and after some epochs, and warns at most once.

    Args:
        owner: the Distiller.
        sample: inputs of its steps, with the outputs of a precomputed teacher.
    """

    def __init__(self, owner: Any, sample: Structure):
        super().__init__()
        self._owner, self._sample = owner, sample
        self._taught: list[Any] = []
        self._start: Distance | None = None

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Measures the initial distance."""
        start = self._measure()
        if start is not None and start.relative < _NEAR:
            self._start = start
        else:
            self._sample, self._taught = None, []

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Measures after epochs 1 to 4, 8, 16, 32, ... and the last one."""
        number = epoch + 1
        last = number == (self.params or {}).get("epochs")
        if self._start is None or not (number <= 4 or last or number & (number - 1) == 0):
            return
        now, count = self._measure(), len(tf.nest.flatten(self._sample)[0])
        if now is not None and now.is_beyond(self._start, count):
            self._owner._set_untracked(_drift_warned=True)
            _warn(self._start, now, number, self._owner.student)
            self._start = None

    def _measure(self) -> Distance | None:
        """The current distance; None if it fails, since a check must not abort training."""
        try:
            with _unchanged(self._owner):
                return _distance(self._owner, self._batches())
        except Exception:
            return None

    def _batches(self) -> Iterator[tuple[Any, Any]]:
        """Batches of inputs with the teachers' outputs, which are computed only once."""
        count = len(tf.nest.flatten(self._sample)[0])
        for number, first in enumerate(range(0, count, BATCH)):
            part = slice(first, first + BATCH)
            x, stored = split(tf.nest.map_structure(lambda v, p=part: v[p], self._sample))
            if number == len(self._taught):
                self._taught.append(self._owner._teach(x, stored))
            yield x, self._taught[number]


@contextlib.contextmanager
def _unchanged(owner: Any) -> Iterator[None]:
    """Restores non-trainable variables, such as counters and seeds, that a call changes."""
    models = [owner.student, *as_list(owner.teacher)]
    noted = [
        (variable, variable.numpy())
        for model in models
        for variable in getattr(model, "variables", ())
        if not getattr(variable, "trainable", True)
    ]
    try:
        yield
    finally:
        for variable, value in noted:
            if not np.array_equal(variable.numpy(), value):
                variable.assign(value)


def watched(
    owner: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of `fit` with a `DriftWatch` among the callbacks, if a sample can be read."""
    strategy = owner.distribute_strategy.extended
    if getattr(owner, "_drift_warned", False) or strategy._in_multi_worker_mode():
        return args, kwargs
    bound = inspect.signature(keras.Model.fit).bind(owner, *args, **kwargs)
    given = bound.arguments
    callbacks = given.get("callbacks") or []
    callbacks = list(callbacks) if isinstance(callbacks, (list, tuple)) else [callbacks]
    # Filter decay moves the student away from its teacher on purpose.
    odd = (keras.callbacks.CallbackList,)
    if any(isinstance(c, odd) or getattr(c, "changes_weights", False) for c in callbacks):
        return args, kwargs
    for data in (given.get("validation_data"), (given.get("x"), None)):
        sample = _sample(data, owner._precomputed_teacher is not None)
        if sample is not None:
            given["callbacks"] = [*callbacks, DriftWatch(owner, sample)]
            return bound.args[1:], bound.kwargs
    return args, kwargs


def _sample(data: Any, stored: bool) -> Any:
    """A sample of inputs from arrays or a data set that can be read twice, else None.

    Args:
        data: (x, ...) or a data set, as `fit` takes validation data.
        stored: whether the inputs must come with the outputs of a precomputed teacher.
    """
    x = data[0] if isinstance(data, (tuple, list)) and data else data
    if isinstance(x, tf.data.Dataset):
        if not is_repeatable(x) or (stored and split(_inputs(x.element_spec))[1] is None):
            return None
        return _first_of(x)
    leaves = tf.nest.flatten(x)
    arrays = all(isinstance(leaf, (np.ndarray, tf.Tensor)) and leaf.ndim for leaf in leaves)
    if x is None or not arrays or (stored and split(x)[1] is None):
        return None
    total = min(len(leaf) for leaf in leaves)
    size = sum(leaf.nbytes if hasattr(leaf, "nbytes") else 0 for leaf in leaves) / max(total, 1)
    count = min(EXAMPLES, max(FEWEST, total // 2), total, max(int(BYTES / max(size, 1)), 1))
    rows = np.unique(np.linspace(0, total - 1, count).astype(np.int64)) if count else []
    return tf.nest.map_structure(lambda leaf: _rows(leaf, rows), x) if count else None


def _rows(array: Any, rows: Any) -> Any:
    found = tf.gather(array, rows)
    return tf.cast(found, keras.backend.floatx()) if found.dtype == tf.float64 else found


def _first_of(dataset: tf.data.Dataset) -> Any:
    parts, count, size = [], 0, 0
    for batch in dataset:
        x = _inputs(batch)
        leaves = tf.nest.flatten(x)
        if not leaves or not all(isinstance(leaf, tf.Tensor) for leaf in leaves):
            return None
        parts.append(x)
        count += int(tf.shape(leaves[0])[0])
        size += sum(int(tf.size(leaf)) * leaf.dtype.size for leaf in leaves)
        if count >= EXAMPLES or size >= BYTES:
            break
    if not parts:
        return None
    return tf.nest.map_structure(lambda *each: tf.concat(each, 0)[:EXAMPLES], *parts)


def _inputs(batch: Any) -> Any:
    return batch if isinstance(batch, Mapping) else keras.utils.unpack_x_y_sample_weight(batch)[0]


def _distance(owner: Any, batches: Iterator[tuple[Any, Any]]) -> Distance | None:
    """Distance over all batches, by the first term on class scores or else on final outputs."""
    terms = [term for term in owner._terms if term.on_scores] or [
        term
        for term in owner._terms
        if not (term.loss.teacher_layer_name or term.loss.student_layer_name)
    ]
    if not terms:
        return None
    term = terms[0]
    sums = np.zeros(2)
    teachers, students, alike = [], [], []
    for x, taught in batches:
        if taught is None:
            return None
        outputs = owner._student_feature_extractor(x, training=False)
        teacher, student = term.pair(*taught, outputs)
        theirs, mine = tf.nest.flatten(teacher), tf.nest.flatten(student)
        kinds = sigmoids(term.loss, student)
        scores = term.on_scores and not all(map(is_number, mine, kinds))
        if not scores:
            teachers.append(theirs)
            students.append(mine)
            continue
        for t, s, is_sigmoid in zip(theirs, mine, kinds, strict=True):
            if not is_number(s, is_sigmoid):
                sums += _divergences(t, s, is_sigmoid)
        for same, mask in term.agreement(teacher, student, None):
            same = np.asarray(same, np.float64)
            alike.append(same.ravel() if mask is None else same[np.asarray(mask) > 0])
    if alike:
        found = Distance(float(sums[0] / sums[1]), float(np.concatenate(alike).mean()))
    else:
        found = Distance(_error(teachers, students), None)
    return found if np.isfinite(found.relative) else None


def _divergences(teacher: Any, student: Any, is_sigmoid: bool) -> np.ndarray:
    """Sums of KL(teacher ‖ student) and KL(teacher ‖ uniform)."""
    mask = mask_of(student)
    t, s = (tf.cast(z, tf.float64) for z in (teacher, student))
    if is_sigmoid:
        t, s = (tf.stack([z, tf.zeros_like(z)], -1) for z in (t, s))
    log_t, log_s = tf.nn.log_softmax(t), tf.nn.log_softmax(s)
    p = tf.exp(log_t)
    equal = -tf.math.log(tf.cast(tf.shape(t)[-1], tf.float64))
    found = [tf.reduce_sum(tf.math.multiply_no_nan(log_t - q, p), -1) for q in (log_s, equal)]
    if mask is not None:
        wide = mask[..., tf.newaxis] if is_sigmoid else mask
        found = [f * tf.cast(wide, f.dtype) for f in found]
    return np.array([float(tf.reduce_sum(f)) for f in found])


def _error(teachers: list[list[Any]], students: list[list[Any]]) -> float:
    """Squared error divided by the teacher's variance, averaged over the outputs."""
    shares = []
    for theirs, mine in zip(zip(*teachers, strict=True), zip(*students, strict=True), strict=True):
        t, s = (np.concatenate(each).astype(np.float64) for each in (theirs, mine))
        shares.append(np.sum((t - s) ** 2) / np.sum((t - t.mean(0)) ** 2))
    return float(np.mean(shares))


def _warn(start: Distance, now: Distance, epochs: int, student: keras.Model) -> None:
    if now.agreement is None or start.agreement is None:
        shown = f"the squared error is {now.relative:.2g} of the teacher's variance, and was "
        shown += f"{start.relative:.2g}."
    else:
        shown = f"it agrees on {100 * now.agreement:.1f} % of a sample, and did on "
        shown += f"{100 * start.agreement:.1f} %. (`agreement` in the training logs is computed "
        shown += "in training mode.)"
    checks.warn(
        f"Distiller: in inference mode the student is further from its teacher after {epochs} "
        f"epoch{'' if epochs == 1 else 's'} than it was before the first: {shown} "
        f"{_advice(student)} Ignore this if the student is meant to learn something else from its "
        "labels."
    )


def _advice(student: keras.Model) -> str:
    """What to do, as far as it applies to the student."""
    layers = flat_layers(student)
    if not any(isinstance(one, BatchNormalizationBase) and one.trainable for one in layers):
        return (
            "Use a lower learning rate, such as Adam(1e-5), or a smaller student_loss_weight "
            "if the labels take it away."
        )
    default = ""
    if is_quantized(student):
        default = "; tfkd.quantization.quantize does it unless freeze_batch_norm=False"
    return (
        "If the student was trained on more data than this, its batch-normalization statistics "
        "now follow the few examples: freeze them (`layer.trainable = False` for each "
        f"BatchNormalization before compile{default}), and use a lower learning rate, such as "
        "Adam(1e-5)."
    )
