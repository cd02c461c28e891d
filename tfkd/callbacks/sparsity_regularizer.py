"""Callback for sparsity training: drives channels towards zero before they are removed."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import tf_keras as keras

from tfkd import checks, schedules
from tfkd.callbacks.zeroed import ExtendedStep, find_model, on_replicas
from tfkd.networks.accept import check_model
from tfkd.pruning import criteria, explaining
from tfkd.pruning.channel_analysis import analyse
from tfkd.pruning.graph import KEPT, Graph, WeightAxis
from tfkd.pruning.plans import Plan
from tfkd.schedules import Value

PENALTIES = ("group_norm", "batch_norm")
ALPHA = 4.0  # the lowest unit of a group is shrunk 2^ALPHA times as much as the highest


class _Weight(NamedTuple):
    """A regularized weight, and for each of its channel axes (axis, units)."""

    variable: tf.Variable
    axes: list[tuple[int, np.ndarray]]


class SparsityRegularizer(keras.callbacks.Callback):
    """Adds a proximal step of a sparsity penalty after each training step.

    Channels that the loss does not need are driven towards zero, so that less is lost when they
    are removed. Only the groups that the plan may prune are regularized, all of their channels
    alike: which ones go is decided afterwards. After each step of the optimizer, with its
    learning rate η and the strength λ:

    - "group_norm": the penalty λ Σ γₖ‖wₖ‖² over units k, where wₖ are all trained weights that
      removing the unit removes, the slices of the layers that read it too, and
      γₖ = 2^(4 (max − Iₖ) / (max − min)) with Iₖ = ‖wₖ‖² and the maximum and minimum of the
      group: w ← w / (1 + 2ηλγ). A weight between two units has the sum of their γ.
      Arranged as in DepGraph (Fang et al. 2023, https://arxiv.org/abs/2301.12900).
    - "batch_norm": the penalty λ Σ |gamma| of the batch normalizations of the units:
      gamma ← sign(gamma) max(|gamma| − ηλ, 0). Network slimming (Liu et al. 2017,
      https://arxiv.org/abs/1708.06519). Prune with criterion="batch_norm" then.

    The step is decoupled from the loss as in AdamW: momenta and loss scaling do not see the
    penalty. It has no state: its strength depends on the optimizer's step alone, so that a
    resumed training goes on exactly; and it leaves nothing in the model. `sparsity_penalty`,
    λ times the sum, is added to the logs of each epoch.

    Args:
        plan: a `tfkd.pruning.Plan` for the model: its `residual` and `ignore` say which groups
            are regularized. Its counts do not matter.
        penalty: "group_norm", or "batch_norm" for groups with batch normalization alone.
        strength: λ, at least 0: a number, or a schedule of the optimizer's step, counted from 0.
            Since η multiplies it, a λ for SGD at a rate of 0.1 is 100 times as large for Adam
            at 0.001.
        model: the model to prune, if it is only a part of the trained one, as in `FilterDecay`.

    Raises:
        TypeError, ValueError: for a bad argument; at the start of training if the plan was
            made for another model, nothing that it may prune is trained, or the optimizer
            has no learning rate.

    Example:
        >>> import numpy as np, tf_keras as keras, tfkd
        >>> model = keras.Sequential([
        ...     keras.layers.Dense(8, "relu", input_shape=(4,)), keras.layers.Dense(2)])
        >>> model.compile("adam", "mse")
        >>> sparsity = tfkd.callbacks.SparsityRegularizer(
        ...     tfkd.pruning.plan(model, filter_rate=0.5),
        ...     strength=tfkd.schedules.Linear(0.0, 0.1, 0, 8))
        >>> logs = model.fit(
        ...     np.ones((32, 4)), np.ones((32, 2)), 4, verbose=0, callbacks=[sparsity]).history
        >>> sorted(logs)
        ['loss', 'sparsity_penalty']
    """

    changes_weights = True  # keeps a Distiller from warning that student and teacher diverge

    def __init__(
        self,
        plan: Plan,
        penalty: str = "group_norm",
        strength: Value = 1e-4,
        *,
        model: keras.Model | None = None,
    ):
        super().__init__()
        self._supports_tf_logs = True  # it only adds to the logs, so Keras need not sync them
        self.plan = checks.instance("plan", plan, Plan, "a tfkd.pruning.Plan, made by plan(model)")
        self.penalty = checks.one_of("penalty", penalty, PENALTIES)
        self.strength = schedules.get("strength", strength, checks.non_negative)
        if model is not None:
            check_model("model", model)
        self._pruned = model
        self._step: ExtendedStep | None = None

    def on_train_begin(self, logs: dict[str, float] | None = None) -> None:
        """Finds the weights to regularize, and adds the proximal step to the training step."""
        _rate(self.model)  # raises ValueError if the optimizer has none
        found = find_model(self.model, self._pruned, self.plan.fingerprint)
        graph = analyse(found)
        self._units = _Units(graph, self.plan)
        axes = [axis for axis in graph.axes if self._units.on(axis).any()]
        if self.penalty == "batch_norm":
            axes = self._gammas(graph)
        self._weights = _trained(self.model, graph, axes)
        if not self._weights:
            fix = "Set model.trainable = True, or plan with fewer layers in ignore."
            if self.penalty == "batch_norm":
                fix = 'Without batch normalization choose penalty="group_norm". ' + fix
            raise ValueError(
                f"`model`: expected {found.name!r} to train weights that the plan may remove, "
                f"received none of them. {fix}"
            )
        self._restore_step()  # an interrupted `fit` may have left the extended step
        self._step = ExtendedStep(self.model, self._shrink)

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Adds the penalty to the logs."""
        if logs is not None:
            step = max(int(self.model.optimizer.iterations.numpy()) - 1, 0)
            strength = float(schedules.value_at(self.strength, step))
            logs["sparsity_penalty"] = strength * float(self._sum())

    def on_train_end(self, logs: dict[str, float] | None = None) -> None:
        """Restores the model's own training step."""
        self._restore_step()

    def _restore_step(self) -> None:
        if self._step is not None:
            self._step.remove()
            self._step = None

    def _gammas(self, graph: Graph) -> list[WeightAxis]:
        """The gammas of the open groups; warns of groups that have none."""
        axes = [axis for axis in criteria.gates(graph) if self._units.on(axis).any()]
        having = criteria.by_group(graph, axes)
        groups = enumerate(graph.groups)
        bare = [g.name for i, g in groups if i not in having and not self.plan.left_alone(g)]
        if axes and bare:
            checks.warn(
                "SparsityRegularizer: these groups have no batch normalization with a gamma, and "
                f"are not regularized: {explaining.shortened(bare)}. Choose "
                'penalty="group_norm" to regularize them too.'
            )
        return axes

    def _shrink(self) -> None:
        """The proximal step, as part of the training step."""

        def update(strategy: tf.distribute.Strategy) -> None:
            iterations = tf.convert_to_tensor(self.model.optimizer.iterations)
            strength = tf.cast(schedules.value_at(self.strength, iterations - 1), tf.float32)
            amount = strength * tf.cast(_rate(self.model), tf.float32)
            factors = self._factors()
            for weight in self._weights:
                change = _soft_threshold if self.penalty == "batch_norm" else _divide
                args = (amount * self._spread(weight, factors),)
                strategy.extended.update(weight.variable, change, args=args, group=False)

        on_replicas(update)

    def _factors(self) -> tf.Tensor:
        """The factor of λ for each unit, 0 for those not regularized, and a last 0: (U + 1,)."""
        if self.penalty == "batch_norm":
            return tf.constant(self._units.open_and_kept, tf.float32)
        return self._units.shrinkage(self._squares())

    def _squares(self) -> tf.Tensor:
        """‖w‖² of each unit, (U,)."""
        parts, units = [], []
        for variable, axes in self._weights:
            square = tf.square(tf.cast(tf.convert_to_tensor(variable), tf.float32))
            for axis, owners in axes:
                others = [other for other in range(variable.shape.rank) if other != axis]
                parts.append(tf.reduce_sum(square, others))
                units.append(owners)
        # Indices that no unit owns are negative, and left out.
        return tf.math.unsorted_segment_sum(
            tf.concat(parts, 0), np.concatenate(units), self._units.count
        )

    def _spread(self, weight: _Weight, factors: tf.Tensor) -> tf.Tensor:
        """The sum of the factors of a weight's units, in a shape that broadcasts against it."""
        total: Any = 0.0
        for axis, owners in weight.axes:
            places = np.where(owners == KEPT, self._units.count, owners)
            shape = [1] * weight.variable.shape.rank
            shape[axis] = len(owners)
            total += tf.reshape(tf.gather(factors, places), shape)
        return total

    def _sum(self) -> tf.Tensor:
        """The penalty at a strength of 1."""
        if self.penalty == "group_norm":
            squares = self._squares()
            return tf.reduce_sum(self._units.shrinkage(squares)[:-1] * squares)
        factors = self._factors()
        return tf.add_n(
            [
                tf.reduce_sum(tf.abs(weight.variable) * self._spread(weight, factors))
                for weight in self._weights
            ]
        )


class _Units:
    """The units that a plan may remove.

    Args:
        graph: graph of the model that is trained.
        plan: says which groups are left alone.
    """

    def __init__(self, graph: Graph, plan: Plan):
        self.count = graph.units
        self._groups = len(graph.groups)
        self._group = np.zeros(graph.units, int)
        self.open_and_kept = np.zeros(graph.units + 1)
        for index, group in enumerate(graph.groups):
            self._group[group.units] = index
            self.open_and_kept[group.units] = not plan.left_alone(group)

    def on(self, axis: WeightAxis) -> np.ndarray:
        """Bool array, True for the indices of an axis that such units own."""
        return self.open_and_kept[axis.units] > 0  # KEPT, -1, is the last

    def shrinkage(self, squares: tf.Tensor) -> tf.Tensor:
        """γ of each unit from ‖w‖² (U,), 1 to 2^ALPHA; 0 for others, and a last 0: (U + 1,)."""
        high = tf.gather(
            tf.math.unsorted_segment_max(squares, self._group, self._groups), self._group
        )
        low = tf.gather(
            tf.math.unsorted_segment_min(squares, self._group, self._groups), self._group
        )
        gamma = 2.0 ** (ALPHA * tf.math.divide_no_nan(high - squares, high - low))
        return tf.concat([gamma, [0.0]], 0) * tf.constant(self.open_and_kept, tf.float32)


def _trained(fitted: keras.Model, graph: Graph, axes: list[WeightAxis]) -> list[_Weight]:
    """The weights that `fitted` trains, each once, with their axes."""
    trained = {id(variable) for variable in fitted.trainable_variables}
    found: dict[int, _Weight] = {}
    for axis in axes:
        variable = graph.variable(axis.layer, axis.weight)
        if id(variable) in trained:
            known = found.setdefault(id(variable), _Weight(variable, []))
            if axis.axis not in [number for number, _ in known.axes]:
                known.axes.append((axis.axis, axis.units))
    return list(found.values())


def _rate(model: keras.Model) -> Any:
    """The learning rate of the optimizer's last step."""
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    rate = getattr(optimizer, "learning_rate", None)
    if rate is None or getattr(optimizer, "iterations", None) is None:
        raise ValueError(
            "`model`: expected an optimizer with a learning rate and `iterations`, received "
            f"{model.name!r} without one. Compile it with an optimizer of tf_keras."
        )
    if isinstance(rate, keras.optimizers.schedules.LearningRateSchedule):  # a legacy optimizer
        return rate(optimizer.iterations - 1)
    return rate


def _soft_threshold(variable: tf.Variable, amount: tf.Tensor) -> None:
    value = tf.convert_to_tensor(variable)
    left = tf.maximum(tf.abs(value) - tf.cast(amount, value.dtype), 0)
    variable.assign(tf.sign(value) * left)


def _divide(variable: tf.Variable, amount: tf.Tensor) -> None:
    value = tf.convert_to_tensor(variable)
    variable.assign(value / (1 + 2 * tf.cast(amount, value.dtype)))
