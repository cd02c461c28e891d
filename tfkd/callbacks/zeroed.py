"""Scales the weight slices of pruned units in training, and keeps them at zero by masks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from tfkd.networks.paths import fingerprint
from tfkd.pruning.graph import Graph
from tfkd.pruning.masking import Slices, multiply, spread
from tfkd.pruning.optimizers import slots_of
from tfkd.types import Structure


class TrainedSlices(Slices):
    """The weight slices of a model in training, which can be kept at zero in every step.

    Args:
        graph: the dependency graph of the model.
    """

    def __init__(self, graph: Graph):
        super().__init__(graph)
        self._masks: list[tuple[tf.Variable, tf.Variable, dict[int, np.ndarray]]] = []

    def kill(self, removed: np.ndarray, optimizer: keras.optimizers.Optimizer) -> None:
        """Sets the slices of removed units to zero, and their slots in the optimizer.

        A momentum other than 0 would move them away from zero again.

        Args:
            removed: bool array (U,).
            optimizer: a Keras optimizer, whose slots of the same shape as a weight are set.
        """
        self.zero(removed)
        factors = np.where(removed, 0.0, 1.0)
        for variable, axes in self._items:
            for slot in slots_of(optimizer, variable):
                if slot.shape == variable.shape:
                    multiply(slot, spread(variable, axes, factors))

    def make_masks(self, model: keras.Model) -> int:
        """Creates the masks of `keep`, all ones, for the weights that `model` trains.

        Returns:
            The number of masks.
        """
        trained = {id(variable) for variable in model.trainable_variables}
        self._masks = []
        with model.distribute_strategy.scope():
            for variable, axes in self._items:
                if id(variable) in trained:
                    ones = spread(variable, axes, np.ones(self._graph.units))
                    mask = tf.Variable(ones, trainable=False, dtype=variable.dtype)
                    self._masks.append((variable, mask, axes))
        return len(self._masks)

    def set_masks(self, removed: np.ndarray) -> None:
        """Sets the masks, with which `keep` holds the slices of these units at zero."""
        for variable, mask, axes in self._masks:
            alive = spread(variable, axes, np.where(removed, 0.0, 1.0))
            mask.assign(alive.astype(mask.dtype.as_numpy_dtype))

    def keep(self) -> None:
        """Multiplies each weight by its mask, as part of the training step on every replica."""

        def update(strategy: tf.distribute.Strategy) -> None:
            for variable, mask, _ in self._masks:
                strategy.extended.update(variable, _apply_mask, args=(mask,), group=False)

        on_replicas(update)


class ExtendedStep:
    """Runs a function at the end of each training step of a model, until `remove`.

    Several callbacks may extend the same model; their functions run in the order of these.

    Args:
        model: the model that `fit` trains; its train function is made again.
        after: called without arguments in every step, on every replica.
    """

    def __init__(self, model: keras.Model, after: Callable[[], object]):
        self._model, self._after = model, after
        step = vars(model).get("train_step")
        if not isinstance(step, _Step):
            step = _Step(model.train_step, step)
            # Bypasses Keras's __setattr__, which tracks attributes of a model for saving.
            object.__setattr__(model, "train_step", step)
        step.functions.append(after)
        # `fit` has made its train function before callbacks begin, but will use this one.
        model.train_function = model.make_train_function(force=True)

    def remove(self) -> None:
        """Takes the function away, and with the last one restores the model's own step."""
        step = vars(self._model).get("train_step")
        if not isinstance(step, _Step) or self._after not in step.functions:
            return
        step.functions.remove(self._after)
        if not step.functions:
            del vars(self._model)["train_step"]
            if step.before is not None:
                object.__setattr__(self._model, "train_step", step.before)
        self._model.train_function = None


class _Step:
    """A training step with functions to call after it.

    Args:
        original: the step, bound to its model.
        before: the step that was set on the model itself, or None.
    """

    def __init__(self, original: Callable[[Structure], Any], before: Any):
        self._original, self.before = original, before
        self.functions: list[Callable[[], object]] = []

    def __call__(self, data: Structure) -> dict[str, tf.Tensor]:
        logs = self._original(data)
        for function in self.functions:
            function()
        return logs


def on_replicas(update: Callable[[tf.distribute.Strategy], object]) -> None:
    """Calls `update(strategy)` once for all replicas, from within a training step."""
    # As Keras's optimizers do, so that it works in every context in which they do.
    strategy = tf.distribute.get_strategy()
    tf.__internal__.distribute.interim.maybe_merge_call(update, strategy)


def find_model(fitted: keras.Model, given: keras.Model | None, wanted: str) -> keras.Model:
    """Finds the model for which a plan was made among those that `fit` trains.

    Args:
        fitted: the model whose `fit` was called.
        given: the model that the user passed, or None.
        wanted: fingerprint of the model for which the plan was made.

    Raises:
        ValueError: if there is no such model.
    """
    candidates = [given] if given else [fitted, getattr(fitted, "student", None)]
    for candidate in candidates:
        if isinstance(candidate, keras.Model) and _has_fingerprint(candidate, wanted):
            trained = {id(variable) for variable in fitted.weights}
            if all(id(variable) in trained for variable in candidate.weights):
                return candidate
            raise ValueError(
                f"`model`: expected the model that is trained, {fitted.name!r}, or a part of it, "
                "received a model with other weights. Leave `model` out, or pass the same object "
                "that is trained."
            )
    raise ValueError(
        "`plan`: expected one that was made for the model that is trained (or for its `student`), "
        "received one for a model with other layers or shapes than "
        f"{(given or fitted).name!r}. Make it again with tfkd.pruning.plan, or pass `model=` if "
        "the pruned model is a part of the trained one."
    )


def _has_fingerprint(model: keras.Model, wanted: str) -> bool:
    try:
        return fingerprint(model) == wanted
    except ValueError:  # a model that is not built has no shapes
        return False


def _apply_mask(variable: tf.Variable, mask: tf.Tensor) -> None:
    # The gradient of a zero filter may be infinite: here NaN · 0 must be 0.
    variable.assign(tf.math.multiply_no_nan(tf.convert_to_tensor(variable), mask))
