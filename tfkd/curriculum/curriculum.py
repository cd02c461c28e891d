"""A data set for curriculum learning: batches from a growing pool of the easiest examples."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike

from tfkd import checks, example_inputs, replicas
from tfkd.curriculum import ordering
from tfkd.curriculum.pace import AdaptivePace, accept, pool_sizes
from tfkd.curriculum.scores import Difficulty, check_scores
from tfkd.data import pipelines
from tfkd.data.batches import steps_per_epoch
from tfkd.schedules import Schedule
from tfkd.types import Data, Structure, Tensor

# Rounds of the cipher in RandomIndexShuffle. With TensorFlow's default, 4, permutations of
# small pools are visibly not uniform; with 8 or more they are.
_ROUNDS = 16


class Curriculum(tf.Module):
    """A data set that yields easy examples first.

    At each step a batch is drawn from the pool, the easiest `pace(step)` of the examples.
    While the pool does not change, examples are drawn without replacement, pass after
    pass; with all of the data in the pool that is an ordinary shuffled epoch. A batch is
    a function of (seed, step), so it is the same in every process and after a restart. The
    number of steps per epoch is constant, since Keras would cut off an epoch that grows.

    Args:
        data: (x, y) or (x, y, sample_weight), each an array (N, ...) or a dict, list or
            tuple of arrays, held in memory; a data set of `tfkd.data`, of which the
            training part is taken as it is; or a `tf.data.Dataset` of single examples
            (x, y), which is read into memory. For more data than that x may hold the
            names of files, which `preprocess` reads.
        difficulty: one finite number per example (N,), higher is harder; or the result
            of a function of `tfkd.curriculum.difficulty`.
        pace: the share of the examples in the pool, in (0, 1]: a number, a schedule of
            `tfkd.schedules`, such as `Linear`, `Root`, `Exponential` or `Staircase`, or
            an `AdaptivePace`, which depends on a metric.
        batch_size: examples per step, over all replicas and workers.
        order: "easiest_first"; for comparison "hardest_first" (an anti-curriculum) and
            "random" (the same pace, in an order drawn from the seed).
        balance_classes: whether every pool has the class frequencies of the data.
            Otherwise a class that the teacher finds hard comes last.
        labels: class numbers (N,) by which to balance; default: y.
        seed: of the order of the examples, of ties and of augmentation.
        augment, preprocess: as in `tfkd.data.batches`.
        partial: whether the pace is meant to exclude the hardest examples for good, such
            as those with wrong labels; then there is no warning.

    Raises:
        TypeError: if an argument is of the wrong kind.
        ValueError: if lengths differ, a score is NaN, a fraction is outside (0, 1] or
            smaller than a batch, or there are no classes to balance.

    Warns:
        UserWarning: if the pace never reaches 1 and `partial` is not set.

    Reference:
        Bengio et al. 2009, "Curriculum learning", ICML; Hacohen and Weinshall 2019,
        "On the power of curriculum learning in training deep networks", ICML

    Example:
        >>> import numpy as np, tfkd
        >>> from tfkd.curriculum import Curriculum
        >>> x, y, difficulty = np.arange(8.0), np.array([0, 1] * 4), np.arange(8.0)
        >>> pace = tfkd.schedules.Linear(0.5, 1.0, end_step=4)
        >>> paced = Curriculum((x, y), difficulty, pace, batch_size=4)
        >>> paced.steps_per_epoch, paced.pool_size(0), paced.pool_size(4)
        (2, 4, 8)
        >>> x0, y0 = next(iter(paced.batches()))
        >>> sorted(x0.numpy().tolist())
        [0.0, 1.0, 2.0, 3.0]
    """

    def __init__(
        self,
        data: Data,
        difficulty: ArrayLike | Difficulty,
        pace: float | Schedule | AdaptivePace,
        batch_size: int,
        *,
        order: str = "easiest_first",
        balance_classes: bool = True,
        labels: Tensor | None = None,
        seed: int = 0,
        augment: Callable[[tf.Tensor, tf.Tensor], tf.Tensor] | None = None,
        preprocess: Callable[[tf.Tensor], Structure] | None = None,
        partial: bool = False,
    ):
        super().__init__(name="curriculum")
        values = _arrays(data)
        self.count = example_inputs.length("data", values)
        self.batch_size = checks.positive_int("batch_size", batch_size)
        self.steps_per_epoch = steps_per_epoch(self.count, batch_size)
        self.order = checks.one_of("order", order, ordering.ORDERS)
        self.seed = checks.integer("seed", seed, 0, "an integer of at least 0")
        for name, function in (("augment", augment), ("preprocess", preprocess)):
            if function is not None:
                checks.function(name, function)
        self._augment, self.preprocess = augment, preprocess
        checks.instance("balance_classes", balance_classes, bool, "True or False")
        if labels is None and len(values) > 1:
            labels = values[1]
        self._classes = ordering.class_numbers(labels, self.count) if balance_classes else None
        self._set_pace(pace, partial)
        # As tensors the pipeline captures them by reference, instead of as constants.
        self._data = tf.nest.map_structure(tf.convert_to_tensor, values)
        self._begin = 0
        self._difficulty = tf.Variable(tf.zeros(self.count, tf.float64), trainable=False)
        self._order = tf.Variable(tf.range(self.count, dtype=tf.int64), trainable=False)
        self.update_difficulty(difficulty)
        self._compile()

    def _compile(self) -> None:
        signature = [tf.TensorSpec((), tf.int64)]
        self._compiled = tf.function(self._indices, input_signature=signature, autograph=False)

    @property
    def is_adaptive(self) -> bool:
        """Whether the pace depends on a metric."""
        return isinstance(self.pace, AdaptivePace)

    def _set_pace(self, pace: float | Schedule | AdaptivePace, partial: bool) -> None:
        self.pace = accept("pace", pace)
        sizes = pool_sizes(self.pace, self.count)
        self._sizes = tf.constant(sizes, tf.int64)
        if sizes.min() < self.batch_size:
            expected = f"at least one batch of {self.batch_size} in play ({self.count} examples)"
            fix = f"Start at {self.batch_size / self.count:.3g} or more, or use smaller batches."
            raise checks.value_error("pace", expected, self.pace, fix)
        checks.instance("partial", partial, bool, "True or False")
        if sizes.max() < self.count and not partial:
            checks.warn(
                f"the pace {self.pace!r} never reaches 1: the {self.count - sizes.max()} "
                f"{'easiest' if self.order == 'hardest_first' else 'hardest'} of {self.count} "
                "examples are never seen. Pass partial=True if that is meant (wrong labels)."
            )

    def update_difficulty(self, difficulty: ArrayLike | Difficulty) -> None:
        """Ranks the examples again; batches that are not yet prepared use the new order.

        Args:
            difficulty: as in the constructor.

        Raises:
            ValueError: for scores of another length, or NaN.
        """
        scores = check_scores("difficulty", difficulty, self.count)
        self._difficulty.assign(scores)
        self._order.assign(ordering.ranked(scores, self._classes, self.order, self.seed))

    def fraction(self, step: int) -> float:
        """Returns the share of the examples in the pool at a step."""
        return float(self.pace(max(step - self._begin, 0)))

    def repaced(self, pace: float | Schedule | AdaptivePace, begin_step: int = 0) -> Curriculum:
        """Returns a curriculum with another pace, but the same data, order and seed.

        Both share the order: `update_difficulty` of one changes both.

        Args:
            pace: as in the constructor.
            begin_step: the step that is step 0 of the pace.

        Raises:
            TypeError, ValueError: as in the constructor, but without the warning.
        """
        other = copy.copy(self)
        other._set_pace(pace, partial=True)
        other._begin = checks.non_negative_int("begin_step", begin_step)
        other._compile()
        return other

    def pool_size(self, step: int) -> int:
        """Returns the number of examples in the pool at a step, the first ones of `ranking`."""
        return int(self._pool(tf.constant(step, tf.int64)))

    @property
    def difficulty(self) -> np.ndarray:
        """The score of each example, float64 (N,)."""
        return self._difficulty.numpy()

    @property
    def data(self) -> tuple[Structure, ...]:
        """(x,), (x, y) or (x, y, sample_weight), as tensors."""
        return self._data

    @property
    def ranking(self) -> np.ndarray:
        """Indices of the examples (N,) in the order in which they enter the pool."""
        return self._order.numpy()

    def indices(self, step: int) -> np.ndarray:
        """Returns the indices of the global batch at a step, int64 (batch_size,)."""
        return self._compiled(tf.constant(step, tf.int64)).numpy()

    def _pool(self, step: tf.Tensor) -> tf.Tensor:
        if isinstance(self.pace, AdaptivePace):
            return tf.gather(self._sizes, self.pace.level)
        return tf.gather(self._sizes, tf.clip_by_value(step - self._begin, 0, len(self._sizes) - 1))

    def _indices(self, step: tf.Tensor) -> tf.Tensor:
        """The global batch at a step: consecutive draws from shuffled passes over the pool.

        The permutation of a pass is a function of (seed, size of the pool, pass).
        """
        pool = self._pool(step)
        draws = step * self.batch_size + tf.range(self.batch_size, dtype=tf.int64)
        passes, places = draws // pool, draws % pool
        # The pool has at least one batch, so a batch spans two passes at most.
        keys = tf.stack([self._key(pool, passes[0]), self._key(pool, passes[0] + 1)])
        ranks = tf.raw_ops.RandomIndexShuffle(
            index=places,
            seed=tf.gather(keys, passes - passes[0]),
            max_index=tf.fill([self.batch_size], pool - 1),
            rounds=_ROUNDS,
        )
        return tf.gather(self._order, ranks)

    def _key(self, pool: tf.Tensor, passed: tf.Tensor) -> tf.Tensor:
        """A key of three random numbers; with small ones the cipher hardly permutes."""
        seed = tf.constant([self.seed, 0], tf.int64)
        for number in (pool, passed):
            seed = tf.random.experimental.stateless_fold_in(seed, number)
        return tf.random.stateless_uniform((3,), seed, minval=None, maxval=None, dtype=tf.uint32)

    def batches(
        self,
        start_step: int | tf.Variable = 0,
        input_context: tf.distribute.InputContext | None = None,
    ) -> tf.data.Dataset:
        """Returns infinite batches, to be passed to `fit` with `steps_per_epoch`.

        Args:
            start_step: the first step, to resume after an interruption. An int64 variable
                is read whenever an iteration begins.
            input_context: for `strategy.distribute_datasets_from_function`: only this
                worker's share of each global batch is yielded.

        Returns:
            A `tf.data.Dataset` of x, (x, y) or (x, y, sample_weight), like `data`.

        Raises:
            ValueError: if the batch does not divide by the number of workers.
        """
        if not isinstance(start_step, tf.Variable):
            checks.non_negative_int("start_step", start_step)
        first, size = replicas.rows_of_worker(input_context, self.batch_size)

        def batch(step):
            indices = self._indices(step)
            if self._augment is None:
                indices = indices[first : first + size]
            values = tf.nest.map_structure(lambda array: tf.gather(array, indices), self._data)
            return self._prepare(values, step, first, size)

        # Batches prepared ahead would come from the pool before an update.
        ahead = 1 if self.is_adaptive else pipelines.parallel()
        once = tf.data.Dataset.from_tensors(0)
        steps = once.flat_map(lambda _: tf.data.Dataset.range(start_step, np.iinfo(np.int64).max))
        dataset = pipelines.mapped(steps, batch, ahead)
        return dataset.apply(tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY))

    def _prepare(
        self, values: tuple[Structure, ...], step: tf.Tensor, first: int, size: int
    ) -> Structure:
        x, *others = values
        if self._augment is not None:
            # The global batch is augmented, so that workers see what one process would.
            seed = tf.stack([tf.constant(self.seed, tf.int64), step])
            x = self._augment(x, tf.cast(seed, tf.int32))
            part = slice(first, first + size)
            x, *others = tf.nest.map_structure(lambda value: value[part], (x, *others))
        if self.preprocess is not None:
            x = self.preprocess(x)
        return (x, *others) if others else x


def _arrays(data: Data) -> tuple[Structure, ...]:
    """Reads the data as (x,), (x, y) or (x, y, sample_weight)."""
    data = tuple(data) if isinstance(data, list) else data
    found = example_inputs.arrays("data", data, stack=True)
    if found.sample_weight is not None and found.y is None:
        raise checks.value_error("data", "labels, with sample_weight", data)
    return example_inputs.as_tuples(tuple(value for value in found if value is not None))
