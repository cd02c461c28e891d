"""Callback for annealed filter decay: soft pruning of filters that ends in exact zeros."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from tfkd import checks
from tfkd.callbacks.zeroed import ExtendedStep, TrainedSlices, find_model
from tfkd.networks.accept import check_model
from tfkd.pruning import criteria
from tfkd.pruning.channel_analysis import analyse
from tfkd.pruning.decay import AnnealedFilterDecay
from tfkd.pruning.planning import Plan
from tfkd.pruning.selection import Selection
from tfkd.summaries import WritingCallback
from tfkd.types import Path

DECAYS = ("compounding", "relative")


class FilterDecay(WritingCallback):
    """Multiplies the lowest-scored filters by a rate that decreases to exactly zero.

    Every `schedule.frequency` steps the filters of each channel group are scored, and
    the lowest, as many as the plan removes, are multiplied by the decay rate: kernel,
    bias, gamma, beta and moving mean (batch normalization would undo a decay of the
    kernel alone). The others are unchanged, and a filter can leave the selection at the
    next interval. At `schedule.end_step` the rate is 0: the selection is final, and its
    filters stay exactly zero in all later steps, whatever the optimizer does. Then
    `tfkd.pruning.shrink(model, callback.selection)` removes them.

    Steps are those of the optimizer (`optimizer.iterations`). A decay that is due at
    step s happens after s steps, or with `steps_per_execution` at the end of that
    execution, with the rate of the step reached. `decay_rate` and `sparsity` (the share
    of all units whose filters are exactly zero) are added to the logs of each epoch, for
    the callbacks after this one: list it before TensorBoard.

    Args:
        plan: the result of `tfkd.pruning.plan` for the trained model.
        schedule: a `tfkd.pruning.AnnealedFilterDecay`, which includes soft and hard
            pruning.
        decay: how the rate dr acts on a filter that stays selected. "compounding"
            multiplies it by dr at each interval, so that the rates compound; "relative"
            scales it to dr times its value without decay, by the factor
            dr(now) / dr(last interval).
        model: the model to prune, if it is only a part of the trained one. By default
            the trained model or its `student` (`tfkd.Distiller`), whichever the plan was
            made for.
        log_dir: a folder for TensorBoard, in which the run `filter_decay` shows, by
            optimizer step, rate, sparsity, scores, and the mean score of the selected
            filters before they decay, which tells how far they grow back between two
            intervals (the mean of all is 1); None writes nothing. Of several workers
            only the chief writes.
        log_scores: whether to write a histogram of each group's scores.
        warn_if_unfinished: whether to warn if training ends before `end_step`: the
            filters are not zero then, and removing them would change the model's outputs.

    Attributes:
        history: list of (step, decay rate, number of newly selected units).
        selection: the current `tfkd.pruning.Selection`. `shrink` and `apply_selection`
            reject it until the decay has ended.

    Raises:
        ValueError, TypeError: for a bad argument, and at the start of training
            if the plan was made for another model.

    Example:
        >>> import numpy as np, tf_keras as keras, tfkd
        >>> model = keras.Sequential([
        ...     keras.layers.Dense(8, "relu", input_shape=(4,)), keras.layers.Dense(2)])
        >>> model.compile("adam", "mse")
        >>> plan = tfkd.pruning.plan(model, filter_rate=0.5)
        >>> schedule = tfkd.pruning.AnnealedFilterDecay(0.5, begin_step=0, end_step=6)
        >>> decay = tfkd.callbacks.FilterDecay(plan, schedule)
        >>> _ = model.fit(np.ones((32, 4)), np.ones((32, 2)), 4, verbose=0, callbacks=[decay])
        >>> decay.selection.count, decay.history[-1][:2]
        (4, (6, 0.0))
        >>> int((model.get_weights()[0] == 0).all(axis=0).sum())
        4
    """

    changes_weights = True  # keeps a Distiller from warning that student and teacher diverge

    def __init__(
        self,
        plan: Plan,
        schedule: AnnealedFilterDecay,
        *,
        decay: str = "compounding",
        model: keras.Model | None = None,
        log_dir: Path | None = None,
        log_scores: bool = True,
        warn_if_unfinished: bool = True,
    ):
        super().__init__(log_dir, "filter_decay")
        self._supports_tf_logs = True  # it only adds to the logs, so Keras need not sync them
        self.plan = checks.instance("plan", plan, Plan, "a tfkd.pruning.Plan, made by plan(model)")
        kind = "a tfkd.pruning.AnnealedFilterDecay"
        self.schedule = checks.instance("schedule", schedule, AnnealedFilterDecay, kind)
        self.decay = checks.one_of("decay", decay, DECAYS)
        if model is not None:
            check_model("model", model)
        self._pruned = model
        self.log_scores = checks.instance("log_scores", log_scores, bool, "a bool")
        checks.instance("warn_if_unfinished", warn_if_unfinished, bool, "a bool")
        self.warn_if_unfinished = warn_if_unfinished
        self._reset()
        self._graph: Any = None
        self._step: ExtendedStep | None = None

    def _reset(self) -> None:
        """Restores the state before the first interval."""
        self._done: int | None = None  # the last due step at which filters were decayed
        self._rate = 1.0
        self._selection = Selection({}, self.plan.graph.fingerprint)
        self.history: list[tuple[int, float, int]] = []

    @property
    def selection(self) -> Selection:
        """The selected units; until the schedule has ended, it is marked as pending."""
        if self.frozen:
            return self._selection
        where = "has not begun" if self._done is None else f"is at step {self._done}"
        pending = f"decay {where} (end_step {self.schedule.end_step})"
        return dataclasses.replace(self._selection, pending=pending)

    @property
    def frozen(self) -> bool:
        """Whether the schedule has ended: the selection is final, and its filters are zero."""
        return self._done is not None and self.schedule.ended(self._done)

    def state_dict(self) -> dict[str, Any]:
        """Returns the state for a later resume, as JSON: save it together with the weights."""
        return {
            "step": self._done,
            "rate": self._rate,
            "selection": self.selection.to_dict(),
            "history": [list(entry) for entry in self.history],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resumes from a `state_dict` at the next `fit`.

        A state of a later step than the model's optimizer has reached is dropped.

        Raises:
            ValueError: if it is not such a state, or belongs to another model.
        """
        if not isinstance(state, dict) or set(state) != set(self.state_dict()):
            raise checks.value_error("state", "what FilterDecay.state_dict returns", state)
        selection = Selection.from_dict(state["selection"])
        selection.units(self.plan.graph)  # raises ValueError for another model
        self._selection = selection
        self._done, self._rate = state["step"], float(state["rate"])
        self.history = [(int(step), float(rate), int(n)) for step, rate, n in state["history"]]

    def on_train_begin(self, logs: dict[str, float] | None = None) -> None:
        """Finds the model to prune, and adds the masks of zero filters to its training step."""
        self._steps_made()  # raises ValueError if the optimizer does not count them
        found = find_model(self.model, self._pruned, self.plan.graph.fingerprint)
        self._graph = analyse(found)
        self._slices = TrainedSlices(self._graph)
        if not self._slices.make_masks(self.model):
            raise ValueError(
                f"`model`: expected {found.name!r} to be trained, received it frozen: none of its "
                "filters is trainable. Set model.trainable = True (a Distiller freezes a teacher)."
            )
        self._restore_step()  # an interrupted `fit` may have left the extended step
        self._step = ExtendedStep(self.model, self._slices.keep)
        self._started = False

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Starts from the optimizer's step, in the first epoch."""
        # Not in on_train_begin, where other callbacks may still restore the model.
        if not self._started:
            self._started = True
            self._start(self._steps_made())

    def on_train_batch_begin(self, batch: int, logs: dict[str, float] | None = None) -> None:
        """Remembers the first batch of this execution."""
        self._first_batch = batch

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        """Decays the filters if an interval is over."""
        # Steps are counted on the host, since reading the optimizer's step waits for the
        # device. Loss scaling may skip steps, so this count is never too low.
        self._counted += batch + 1 - self._first_batch
        if self._next is not None and self._counted >= self._next:
            self._advance(self._steps_made())

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Adds decay rate and sparsity to the logs."""
        self._advance(self._steps_made())  # the last batches may have no batch hook
        if logs is not None:
            logs["decay_rate"] = self._rate
            logs["sparsity"] = self.sparsity()

    def on_train_end(self, logs: dict[str, float] | None = None) -> None:
        """Restores the model's own training step."""
        if self.frozen:
            # The optimizer may just have overwritten the weights by their moving average.
            self._slices.kill(self.selection.units(self._graph), self.model.optimizer)
        self._restore_step()
        super().on_train_end(logs)
        if self.warn_if_unfinished and not self.frozen:
            checks.warn(
                f"FilterDecay: training ended at step {self._steps_made()}, before the schedule's "
                f"end_step {self.schedule.end_step}. The selected filters are not zero yet, and "
                "cutting them out would change what the model computes. Train on with the same "
                "callback, or give the schedule an earlier end_step."
            )

    def sparsity(self) -> float:
        """Returns the share of all units whose filters are exactly zero."""
        return float(self._slices.zero_units().mean()) if self._graph.units else 0.0

    def _restore_step(self) -> None:
        if self._step is not None:
            self._step.remove()
            self._step = None

    def _steps_made(self) -> int:
        counter = getattr(getattr(self.model, "optimizer", None), "iterations", None)
        if counter is None:
            raise ValueError(
                "`model`: expected an optimizer with `iterations`, which count its steps, received "
                f"{self.model.name!r} without one. Compile it with an optimizer of tf_keras."
            )
        return int(counter.numpy())

    def _start(self, step: int) -> None:
        """Determines whether training begins, resumes, or is past the end of the schedule."""
        if self._done is not None and step < self._done:
            self._reset()  # a new training, or one resumed from an earlier checkpoint
        schedule = self.schedule
        if self._done is None and schedule.ended(step):
            self._adopt()
        elif self._done is None and step > schedule.begin_step:
            self._done = schedule.last_due(step)
            checks.warn(
                f"FilterDecay: starts at step {step}, between begin_step {schedule.begin_step} and "
                f"end_step {schedule.end_step}, without the state of earlier intervals, which are "
                "taken as done. For an exact resume save state_dict() with the weights and call "
                "load_state_dict before fit."
            )
        self._advance(step)
        if self.frozen:
            self._freeze()

    def _adopt(self) -> None:
        """Takes zero filters as the selection, past the end without a state, if they fit."""
        zero = self._slices.zero_units()
        groups = self._graph.groups
        if all(zero[g.units].sum() == self.plan.remove.get(g.name, 0) for g in groups):
            self._selection = Selection.from_units(self._graph, zero)
            self._done, self._rate = self.schedule.end_step, 0.0

    def _advance(self, step: int) -> None:
        """Decays the filters of the due interval, unless that has been done."""
        self._counted = step
        self._next = self.schedule.next_due(step)
        due = self.schedule.last_due(step)
        if due is None or (self._done is not None and due <= self._done):
            return
        scores = criteria.scores(self._graph, self.plan.criterion, self.plan.seed)
        removed, before = self._lowest(scores), self.selection.units(self._graph)
        rate = self.schedule.decay_rate(step)
        factors = np.where(removed, rate, 1.0)
        if self.decay == "relative":
            factors[removed & before] = rate / self._rate if self._rate else 0.0
        self._slices.scale(factors)
        self._selection = Selection.from_units(self._graph, removed)
        self._done, self._rate = due, rate
        self.history.append((step, rate, int((removed & ~before).sum())))
        if self.frozen:
            self._freeze()
        self._write(step, scores, removed)

    def _lowest(self, scores: np.ndarray) -> np.ndarray:
        """The units of the lowest scores, as many per group as the plan removes: bool (U,)."""
        removed = np.zeros(self._graph.units, bool)
        for name, count in self.plan.remove.items():
            units = self._graph.group(name).units
            removed[units[np.argsort(scores[units], kind="stable")[:count]]] = True
        return removed

    def _freeze(self) -> None:
        removed = self.selection.units(self._graph)
        self._slices.kill(removed, self.model.optimizer)
        self._slices.set_masks(removed)

    def _write(self, step: int, scores: np.ndarray, removed: np.ndarray) -> None:
        if not self._writes():
            return
        with self._summaries(step):
            tf.summary.scalar("filter_decay/decay_rate", self._rate)
            tf.summary.scalar("filter_decay/sparsity", self.sparsity())
            if removed.any():
                tf.summary.scalar("filter_decay/selected_score", scores[removed].mean())
            if self.log_scores:
                for group in self._graph.groups:
                    tf.summary.histogram(f"filter_decay/scores/{group.name}", scores[group.units])
