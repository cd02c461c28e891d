"""Reproducible training batches: shuffling and augmentation as a function of (seed, step).

Stateless random numbers are used in place of a stateful generator: batch number
`step` of a seed is the same array in every process, so a run that resumes at any
step sees the same batches as an uninterrupted one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tfkd import checks, example_inputs
from tfkd.data import pipelines
from tfkd.example_inputs import as_tuples, mapped
from tfkd.types import Structure

# (batch of images, int32 seed of shape (2,)) → batch of images
Augment = Callable[[Any, Any], Any]


def _check_arrays(x: Structure, y: Structure | None) -> int:
    count = example_inputs.length("x", x)
    if count == 0:
        raise checks.value_error("x", "at least one example", x)
    if y is not None and example_inputs.length("y", y) != count:
        raise checks.value_error("y", f"{count} labels, one for each example", y)
    return count


def _element(x: Structure, y: Structure | None, several: bool) -> Structure:
    """What Keras takes for x or (x, y): a tuple of several inputs in another, but no (x, y)."""
    if y is not None:
        return x, y
    return (x,) if several and isinstance(x, tuple) else x


def batches(
    x: Structure,
    y: Structure | None,
    batch_size: int,
    *,
    seed: int = 0,
    augment: Augment | None = None,
    preprocess: Callable[[Any], Any] | None = None,
    epochs: int | None = None,
    start_step: int = 0,
) -> tf.data.Dataset:
    """Shuffled training batches of arrays in memory, endless or for `epochs` passes.

    Args:
        x: (N, ...) array of examples, or a dict, list or tuple of such arrays.
        y: (N, ...) array of labels, or such arrays by output; None for batches of x alone.
        batch_size: examples per batch; the incomplete last batch of each epoch is
            dropped, so that every step has the same size.
        seed: determines shuffling and augmentation.
        augment: `augment(batch, seed)` → batch, with `seed` an int32 tensor of
            shape (2,) to be used with `tf.random.stateless_*`.
        preprocess: `preprocess(batch)` → batch, after `augment`.
        epochs: number of passes; None: endless.
        start_step: first step to yield, for resuming after an interruption.

    Returns:
        A `tf.data.Dataset` of x or (x, y). An epoch has
        `steps_per_epoch(N, batch_size)` batches: pass that number to `fit`.

    Raises:
        ValueError: if there are no examples, lengths differ, or N < batch_size.

    Example:
        >>> import numpy as np
        >>> from tfkd import data
        >>> x, y = np.arange(10.0), np.arange(10)
        >>> a = [b[1].numpy() for b in data.batches(x, y, 5, seed=1, epochs=2)]
        >>> b = [b[1].numpy() for b in data.batches(x, y, 5, seed=1, epochs=2, start_step=3)]
        >>> len(a), bool((a[3] == b[0]).all())
        (4, True)
    """
    count = _check_arrays(x, y)
    steps = steps_per_epoch(count, batch_size)
    checks.integer("seed", seed, 0, "an integer of at least 0")
    checks.non_negative_int("start_step", start_step)
    checks.optional(checks.positive_int, "epochs", epochs)
    checks.optional(checks.function, "augment", augment)
    checks.optional(checks.function, "preprocess", preprocess)

    several = isinstance(x, (list, tuple))
    x, y = (mapped(tf.convert_to_tensor, as_tuples(one)) for one in (x, y))

    def part(values, rows):
        return mapped(lambda value: tf.gather(value, rows), values)

    def gather(step, rows):
        batch = part(x, rows)
        if augment is not None:
            batch = augment(batch, tf.cast(tf.stack([tf.cast(seed, tf.int64), step]), tf.int32))
        if preprocess is not None:
            batch = preprocess(batch)
        return _element(batch, part(y, rows), several)

    rows = shuffled_rows(count, batch_size, seed, epochs, start_step)
    dataset = pipelines.mapped(rows, gather, pipelines.parallel())
    return with_length(dataset, steps, epochs, start_step)


def with_length(
    dataset: tf.data.Dataset, steps: int, epochs: int | None, start_step: int
) -> tf.data.Dataset:
    """Asserts the cardinality: the batches left of `epochs` of so many steps; None: endless."""
    left = tf.data.INFINITE_CARDINALITY
    if epochs is not None:
        left = max(epochs * steps - start_step, 0)
    return dataset.apply(tf.data.experimental.assert_cardinality(left))


def shuffled_rows(
    count: int, batch_size: int, seed: int, epochs: int | None, start_step: int
) -> tf.data.Dataset:
    """Row indices of each batch of shuffled epochs, as a function of (seed, step).

    Args:
        count: number of examples.
        batch_size, seed, epochs, start_step: as in `batches`.

    Returns:
        A `tf.data.Dataset` of (step int64, rows int32 (batch_size,)).
    """
    steps = steps_per_epoch(count, batch_size)
    first_epoch, skip = divmod(start_step, steps)
    last_epoch = np.iinfo(np.int32).max if epochs is None else epochs

    def epoch_rows(epoch):
        key = tf.stack([tf.cast(seed, tf.int64), epoch])
        order = tf.random.experimental.stateless_shuffle(tf.range(count), seed=key)
        rows = tf.reshape(order[: steps * batch_size], (steps, batch_size))
        step = epoch * steps + tf.range(steps, dtype=tf.int64)
        return tf.data.Dataset.from_tensor_slices((step, rows))

    return tf.data.Dataset.range(first_epoch, last_epoch).flat_map(epoch_rows).skip(skip)


def steps_per_epoch(count: int, batch_size: int) -> int:
    """Full batches in one pass over `count` examples.

    Args:
        count: examples of the training part.
        batch_size: examples per batch.

    Raises:
        TypeError: if `batch_size` is no integer.
        ValueError: if it is not positive, or there are fewer examples than one batch.

    Example:
        >>> from tfkd import data
        >>> data.steps_per_epoch(100, 32)
        3
    """
    checks.positive_int("batch_size", batch_size)
    if count < batch_size:
        expected = f"at most the number of examples, {count}"
        raise checks.value_error("batch_size", expected, batch_size)
    return count // batch_size


def eval_batches(
    x: Structure,
    y: Structure | None,
    batch_size: int,
    *,
    preprocess: Callable[[Any], Any] | None = None,
) -> tf.data.Dataset:
    """Batches of every example once and in order; the last batch may be smaller.

    Args:
        x: (N, ...) array of examples, or a dict, list or tuple of such arrays.
        y: (N, ...) array of labels, or such arrays by output, or None.
        batch_size: examples per batch.
        preprocess: `preprocess(batch)` → batch.

    Returns:
        A `tf.data.Dataset` of x or (x, y).

    Raises:
        TypeError: if x or y holds no arrays, or `preprocess` is no function.
        ValueError: if they hold no examples or differ in their number, or `batch_size` is
            not positive.

    Example:
        >>> import numpy as np
        >>> from tfkd import data
        >>> [int(b.shape[0]) for b in data.eval_batches(np.zeros((5, 2)), None, 2)]
        [2, 2, 1]
    """
    _check_arrays(x, y)
    checks.positive_int("batch_size", batch_size)
    checks.optional(checks.function, "preprocess", preprocess)
    values = (as_tuples(x),) if y is None else (as_tuples(x), as_tuples(y))
    source = tf.data.Dataset.from_tensor_slices(values).batch(batch_size)
    several = isinstance(x, (list, tuple))
    source = source.map(lambda a, b=None: _element(preprocess(a) if preprocess else a, b, several))
    return pipelines.untuned(source.prefetch(2))
