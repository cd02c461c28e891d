"""The ProgressiveDistiller: distillation in stages within one `fit`."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import tensorflow as tf
import tf_keras as keras

from tfkd import checks, pruning
from tfkd.callbacks.filter_decay import FilterDecay
from tfkd.curriculum import Stage
from tfkd.curriculum.update import CurriculumUpdate, log_dir_of
from tfkd.distillation import validation
from tfkd.distillation.distiller import Distiller
from tfkd.losses.base import DistillationLoss
from tfkd.losses.configs import fresh
from tfkd.progressive import carrying, freezing, settings, structure
from tfkd.progressive.backup import Backup
from tfkd.progressive.rehearsing import rehearse
from tfkd.progressive.stage_data import Feed, feed
from tfkd.progressive.values import Position, RateOfStage
from tfkd.progressive.watching import StageWatch
from tfkd.schedules import Schedule
from tfkd.types import Data, Path, Structure, Teacher


class ProgressiveDistiller:
    """Distils in stages: for example hints first, then logits; easy examples, then all.

    Each `tfkd.curriculum.Stage` may change the data, temperatures, loss weights,
    learning rate, frozen layers, and the structure of the student (pruning,
    quantization). A `tfkd.Distiller` trains the student; it is recompiled only where
    frozen layers or the structure change. The optimizer's step and the state of
    remaining weights are kept from stage to stage.

    Before training starts, all stages are tried on a copy of the student, so that
    incompatible stages fail at once.

    Args:
        teacher: as for `tfkd.Distiller`.
        student: the `tf_keras` model to train.
        stages: a list of `tfkd.curriculum.Stage`.
        distillation_losses, distillation_loss_weights, student_loss_weight: as for
            `tfkd.Distiller`; defaults for stages that do not change them.
        name: name of the model.
        weigh_distillation: as for `tfkd.Distiller`.

    Attributes:
        student: the current student, which you export.
        distiller: the `tfkd.Distiller` that trains it.
        stages: the list of stages.
        stage: index of the current or last stage.
        logs: the logs of each epoch, a list of dicts.

    Raises:
        TypeError, ValueError: as `tfkd.Distiller`, and for stages that name losses or
            layers that do not exist.

    Reference:
        Bengio et al. 2009, "Curriculum learning",
        https://doi.org/10.1145/1553374.1553380; Romero et al. 2015, "FitNets", which
        trains on hints in a first stage: https://arxiv.org/abs/1412.6550

    Example:
        >>> import numpy as np, tf_keras as keras, tfkd
        >>> from tfkd.curriculum import Curriculum, Stage
        >>> net = lambda units: keras.Sequential([
        ...     keras.layers.Dense(units, "relu", input_shape=(4,)), keras.layers.Dense(2)])
        >>> x = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
        >>> y = (x[:, 0] > 0).astype("int32")
        >>> distiller = tfkd.ProgressiveDistiller(
        ...     net(16), net(4), [Stage(1, fraction=0.5, temperature=8.0), Stage(2)],
        ...     tfkd.losses.LogitsDistillation(2.0))
        >>> distiller.compile(
        ...     "adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        >>> data = Curriculum((x, y), -abs(x[:, 0]), 1.0, batch_size=16)
        >>> history = distiller.fit(data, verbose=0)
        >>> history.history["stage"], history.history["fraction"]
        ([0, 1, 1], [0.5, 1.0, 1.0])
    """

    def __init__(
        self,
        teacher: Teacher,
        student: keras.Model,
        stages: Sequence[Stage],
        distillation_losses: DistillationLoss | Sequence[DistillationLoss],
        distillation_loss_weights: float | Schedule | Sequence[float | Schedule] | None = None,
        student_loss_weight: float | Schedule = 0.5,
        name: str = "progressive_distiller",
        weigh_distillation: bool | None = None,
    ):
        self.stages = settings.check_stages(stages)
        self.teacher, self.name = teacher, name
        self._strategy = tf.distribute.get_strategy()
        losses, weights = validation.check_losses(distillation_losses, distillation_loss_weights)
        self.position = Position()
        self._losses = settings.losses_of(self.stages, losses, self.position)
        self._weights = settings.weights_of(self.stages, losses, weights, self.position)
        self._student_weight = settings.student_weight_of(
            self.stages, student_loss_weight, self.position
        )
        self._weigh_distillation = weigh_distillation
        self.distiller = self.around(student)
        self.trained = freezing.trained(student)
        self._frozen: tuple[str, ...] = ()
        self._compiled: dict[str, Any] | None = None
        self.stage = 0
        self.steps = 0  # steps of all stages so far
        self.stage_begin = 0  # value of `steps` at the beginning of the stage
        self.logs: list[dict[str, float]] = []

    def around(self, student: keras.Model) -> Distiller:
        """A Distiller for a student, with the scheduled values of all stages."""
        before = getattr(self, "distiller", None)  # which has warned, if there was something
        weigh = before.weigh_distillation if before else self._weigh_distillation
        parts = (self.teacher, student, self._losses, self._weights, self._student_weight)
        return Distiller(*parts, name=self.name, weigh_distillation=weigh)

    @property
    def student(self) -> keras.Model:
        """The current student."""
        return self.distiller.student

    def compile(
        self,
        optimizer: str | keras.optimizers.Optimizer = "adam",
        loss: Any = None,
        metrics: Any = None,
        **kwargs: Any,
    ) -> None:
        """As `tfkd.Distiller.compile`.

        Args:
            optimizer: a name or a tf_keras optimizer. If a stage sets a learning rate, a
                copy with the rates of the stages is used. With `use_ema` the averages
                replace the weights once, at the end of the last stage; averages of weights
                that a structural step creates start at that step.
            loss, metrics, **kwargs: as for `tfkd.Distiller.compile`.

        Raises:
            TypeError: for a legacy optimizer.
            ValueError: as `tfkd.Distiller.compile`.
        """
        with self._strategy.scope():
            optimizer = carrying.check_optimizer(optimizer)
            rates = [stage.learning_rate for stage in self.stages]
            if any(rate is not None for rate in rates):
                rate = RateOfStage(rates, carrying.rate_of(optimizer), self.position)
                optimizer = carrying.successor(optimizer, rate)
            self._compiled = {"loss": loss, "metrics": metrics, **kwargs}
            self._compile(optimizer)

    def _compile(self, optimizer: Any) -> None:
        arguments = dict(self._compiled or {})
        # Metric and loss objects hold state, so each compilation uses fresh copies.
        for name in ("loss", "metrics", "weighted_metrics"):
            arguments[name] = fresh(arguments.get(name))
        self.distiller.compile(optimizer, **arguments)

    def fit(
        self,
        x: Data | Callable[[int], tf.data.Dataset],
        y: Structure | None = None,
        *,
        batch_size: int | None = None,
        steps_per_epoch: int | None = None,
        callbacks: Sequence[Any] = (),
        backup_dir: Path | None = None,
        safe_mode: bool = True,
        **kwargs: Any,
    ) -> keras.callbacks.History:
        """Trains all stages in order.

        Each stage is one Keras `fit`: `on_train_begin` and `on_train_end` of callbacks are
        called once per stage, and a callback that sets `stop_training` (EarlyStopping)
        ends the stage.

        Args:
            x: a `Curriculum`; a `tf.data.Dataset`; a function from the start step to a
                data set (such as `data.batches`); or arrays with `y`.
            y: labels, with arrays.
            batch_size: batch size for arrays; default: 32.
            steps_per_epoch: default: that of a Curriculum; needed for endless data.
            callbacks: Keras callbacks. If TensorBoard is among them, a histogram of the
                difficulty of the examples of each epoch is written to its folder.
            backup_dir: a folder in which the state is saved after each epoch: student,
                optimizer, stage and curriculum. An interrupted training is resumed when it
                is started again with the same teacher, student, stages, losses, weights and
                optimizer; other ones are refused, but data, metrics and callbacks are not
                compared. The folder is emptied at the end.
            safe_mode: whether to refuse a student in `backup_dir` that holds Python code, in
                Lambda layers, when a training is resumed.
            **kwargs: arguments of `keras.Model.fit`, such as validation_data and verbose.

        Returns:
            A History with the logs of all epochs, including `stage` and, for a Curriculum,
            `fraction`. Values that a stage does not log are NaN.

        Raises:
            RuntimeError: if `compile` has not been called, or `fit` was called before.
            TypeError, ValueError: for invalid data, for incompatible stages, and for the
                backup of a training with other settings.
        """
        if self._compiled is None:
            raise RuntimeError("ProgressiveDistiller: call `compile` before `fit`.")
        if self.logs:
            raise RuntimeError(
                f"ProgressiveDistiller: its stages have been trained ({len(self.logs)} epochs). "
                "Train the student further with `.distiller.fit`, or make a new "
                "ProgressiveDistiller, which with `backup_dir` resumes an interrupted training."
            )
        for name in ("epochs", "initial_epoch"):
            if name in kwargs:
                fix = "Each Stage has epochs of its own."
                raise checks.type_error(name, "to be left out", kwargs[name], fix)
        source = {"data": (x, y), "batch_size": batch_size, "steps_per_epoch": steps_per_epoch}
        for stage in self.stages:  # check the data of all stages before training
            made = self._feed(stage, source)
            if stage.decay is not None:
                made.known_steps()
        rehearse(self, callbacks)
        backup = None
        if backup_dir is not None:
            given = {"batch_size": batch_size, "steps_per_epoch": steps_per_epoch}
            given["class_weight"] = kwargs.get("class_weight")
            backup = Backup(self, backup_dir, safe_mode, given)
        first = self.stage if backup is not None and backup.restore() else None
        for number in range(first or 0, len(self.stages)):
            if number != first:
                self._begin(number)
            if not self._train(number, source, list(callbacks), backup, kwargs):
                break
        else:
            if backup is not None:
                backup.delete()
        return self._history()

    def _feed(self, stage: Stage, source: dict[str, Any]) -> Feed:
        return feed(stage, **source, begin=self.stage_begin, start=self.steps)

    def _begin(self, number: int) -> None:
        """Sets the structure, position and frozen layers of a stage."""
        self.stage, self.stage_begin = number, self.steps
        stage = self.stages[number]
        with self._strategy.scope():
            if stage.structure:
                student, optimizer = self.student, self.distiller.optimizer
                for step in stage.structure:  # type: ignore[union-attr]  # a tuple by now
                    changed = structure.apply(step, student, carrying.inner(optimizer))
                    student, optimizer = changed.student, changed.optimizer or optimizer
                self.adopt(student, optimizer)
            self.position.move(number, int(self.distiller.optimizer.iterations.numpy()))
            self.set_frozen(stage.freeze)

    def set_frozen(self, patterns: Iterable[Any]) -> None:
        """Freezes layers, and recompiles if others were frozen before."""
        patterns = tuple(patterns)
        if patterns == self._frozen:
            return
        # An optimizer supports only the variables of its first build.
        carrying.inner(self.distiller.optimizer).build(self.all_trained())
        freezing.freeze(self.student, patterns, self.trained)
        self._frozen = patterns
        self._compile(self.distiller.optimizer)

    def all_trained(self) -> list[Any]:
        """The variables that any stage may train, for which the optimizer is built."""
        now = freezing.trained(self.student)
        freezing.freeze(self.student, (), self.trained)
        variables = list(self.distiller.trainable_variables)
        freezing.freeze(self.student, (), now)
        return variables

    def adopt(self, student: keras.Model, optimizer: keras.optimizers.Optimizer) -> None:
        """Replaces the student, and transfers the optimizer's state to the new one.

        Args:
            student: the new student.
            optimizer: the optimizer of the old student, or one whose state already belongs
                to the new student.
        """
        old, new = self.distiller, self.around(student)
        for before, after in zip(old.projectors, new.projectors, strict=True):
            if before is not after and before.built and before.shapes == after.shapes:
                after.set_weights(before.get_weights())
        known = [*old.student.weights, *student.weights]
        known += [weight for projector in old.projectors for weight in projector.weights]
        self.distiller, self._frozen = new, ()
        freezing.freeze(student, (), self.trained)
        following = carrying.successor(old.optimizer, carrying.rate_of(old.optimizer))
        if getattr(carrying.inner(optimizer), "_built", False):
            carrying.carry(optimizer, known, following, list(new.trainable_variables))
        self._compile(following)

    def _train(
        self, number: int, source: dict[str, Any], callbacks: list[Any], backup: Any, kwargs: Any
    ) -> bool:
        """Trains a stage; returns False if the whole training has to stop."""
        stage = self.stages[number]
        watch, made = StageWatch(self, stage, number), self._feed(stage, source)
        decay = watch.decay = self._decay(stage, made)
        own = [watch] if decay is None else [watch, decay]
        if made.curriculum is not None:
            folder = log_dir_of(callbacks)
            own.append(CurriculumUpdate(made.curriculum, start_step=self.steps, log_dir=folder))
        last = [watch.last]
        if backup is not None:
            backup.watch(decay, made.curriculum)
            last.append(backup)
        done, left = len(self.logs), stage.epochs - len(watch.logs)
        optimizer, is_last = self.distiller.optimizer, number == len(self.stages) - 1
        if left > 0 and not watch.promoted():
            with contextlib.nullcontext() if is_last else carrying.weights_kept(optimizer):
                span = {"initial_epoch": done, "epochs": done + left}
                every = [*own, *callbacks, *last]
                self.distiller.fit(**made.arguments, **kwargs, **span, callbacks=every)
        elif is_last and getattr(carrying.inner(optimizer), "_built", False):
            optimizer.finalize_variable_values(self.distiller.trainable_variables)
        if self.logs and math.isnan(self.logs[-1].get("loss", 0.0)):
            checks.warn(
                f"ProgressiveDistiller: the loss is NaN in {stage.title(number)}; the remaining "
                "stages are skipped."
            )
            return False
        self._cut(stage, number, decay)
        return True

    def _decay(self, stage: Stage, made: Feed) -> Any:
        if stage.decay is None:
            return None
        begin = int(self.position.begin.numpy())
        plan = pruning.plan(self.student, **stage.decay.options)
        steps = made.known_steps()
        schedule = stage.decay.schedule(plan, begin, stage.epochs * steps, steps)
        return FilterDecay(plan, schedule, model=self.student, warn_if_unfinished=False)

    def _cut(self, stage: Stage, number: int, decay: Any) -> None:
        if decay is None:
            return
        if not decay.frozen:
            checks.warn(
                f"ProgressiveDistiller: {stage.title(number)} was stopped before its filters had "
                "decayed to zero, so none are removed."
            )
            return
        with self._strategy.scope():
            optimizer = carrying.inner(self.distiller.optimizer)
            self.adopt(*structure.cut_out(self.student, decay.selection, optimizer))

    def _history(self) -> keras.callbacks.History:
        history = keras.callbacks.History()
        history.epoch = list(range(len(self.logs)))
        names = dict.fromkeys(name for logs in self.logs for name in logs)
        history.history = {n: [logs.get(n, math.nan) for logs in self.logs] for n in names}
        history.set_model(self.distiller)
        return history

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """`tfkd.Distiller.evaluate` of the current student."""
        return self.distiller.evaluate(*args, **kwargs)

    def predict(self, *args: Any, **kwargs: Any) -> Structure:
        """The student's outputs, as `keras.Model.predict`."""
        return self.distiller.predict(*args, **kwargs)
