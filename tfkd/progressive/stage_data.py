"""Training data of a stage: curricula, data sets, functions or arrays as arguments of `fit`."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import tensorflow as tf

from tfkd import checks
from tfkd.curriculum import Curriculum, Stage

_EXPECTED = "a Curriculum, a tf.data.Dataset, a function of the start step, or arrays"


@dataclasses.dataclass(frozen=True)
class Feed:
    """Data for the `fit` of one stage.

    Attributes:
        arguments: x, y, batch_size and steps_per_epoch, for Keras.
        steps: steps per epoch, or None if not known.
        curriculum: the curriculum with the pacing function of the stage, or None.
    """

    arguments: dict[str, Any]
    steps: int | None
    curriculum: Curriculum | None = None

    def known_steps(self) -> int:
        """Steps per epoch, which a filter decay needs.

        Raises:
            ValueError: if they are not known.
        """
        if self.steps is None:
            expected = "a number: a decay is spread over the steps of its stage"
            raise checks.value_error("steps_per_epoch", expected, None)
        return self.steps


def feed(
    stage: Stage,
    data: tuple[Any, Any],
    batch_size: int | None,
    steps_per_epoch: int | None,
    begin: int,
    start: int,
) -> Feed:
    """Prepares the data of a stage.

    Args:
        stage: the stage, whose own data take precedence.
        data: (x, y) as passed to `fit`.
        batch_size, steps_per_epoch: as passed to `fit`, or None.
        begin: the step at which the stage begins, from which its pacing counts.
        start: the step of the first batch; later than `begin` after an interruption.

    Raises:
        TypeError, ValueError: for data of the wrong type, a fraction without a
            Curriculum, or a missing steps_per_epoch.
    """
    x, y = data
    if stage.data is not None:
        x, y = stage.data if isinstance(stage.data, tuple) else (stage.data, None)
    if isinstance(x, Curriculum):
        paced = x if stage.fraction is None else x.repaced(stage.fraction, begin)
        steps = steps_per_epoch or paced.steps_per_epoch
        return Feed({"x": paced.batches(start), "steps_per_epoch": steps}, steps, paced)
    if stage.fraction is not None:
        fix = "Wrap the data: tfkd.curriculum.Curriculum((x, y), difficulty, 1.0, batch_size)."
        raise checks.type_error("x", "a Curriculum, since the stage sets a fraction", x, fix)
    if callable(x) and not isinstance(x, tf.data.Dataset):
        if steps_per_epoch is None:
            expected = "a number, for data made by a function of the start step"
            raise checks.value_error("steps_per_epoch", expected, None)
        return Feed({"x": x(start), "steps_per_epoch": steps_per_epoch}, steps_per_epoch)
    if isinstance(x, tf.data.Dataset):
        return _of_dataset(x, steps_per_epoch)
    return _of_arrays(x, y, batch_size or 32, steps_per_epoch)


def _of_dataset(x: tf.data.Dataset, steps: int | None) -> Feed:
    size = int(x.cardinality())
    if steps is None and size == tf.data.INFINITE_CARDINALITY:
        fix = "The length of an epoch of an endless data set is not known."
        raise checks.value_error("steps_per_epoch", "a number", steps, fix)
    known = steps or (size if size > 0 else None)
    return Feed({"x": x, "steps_per_epoch": steps}, known)


def _of_arrays(x: Any, y: Any, batch_size: int, steps: int | None) -> Feed:
    leaves = tf.nest.flatten(x)
    if not leaves or not all(hasattr(leaf, "shape") for leaf in leaves):
        raise checks.type_error("x", _EXPECTED, x)
    known = steps or math.ceil(int(leaves[0].shape[0]) / batch_size)
    arguments = {"x": x, "y": y, "batch_size": batch_size, "steps_per_epoch": steps}
    return Feed(arguments, known)
