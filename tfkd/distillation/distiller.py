"""The Distiller: a Keras model whose training step distils a teacher into a student.

    total = w · student_loss + (1 − w) · Σ wᵢ · KDᵢ
    loss  = total + the student's own regularization losses

Constructor, attributes and metric names are those of `keras.distillation` in
Keras 3.15. In each step the student runs once and each teacher at most once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import tensorflow as tf
import tf_keras as keras

from tfkd import checks, known_faults, replicas
from tfkd.curriculum import Curriculum
from tfkd.distillation import (
    arguments,
    drift,
    evaluation,
    output_kinds,
    pairing,
    targets,
    validation,
    variables,
)
from tfkd.distillation.balancing import Balancing, is_one, is_zero
from tfkd.distillation.objective import Objective
from tfkd.distillation.pacing import Pacing, refuse
from tfkd.distillation.projectors import Projector
from tfkd.distillation.saving import Saving
from tfkd.distillation.terms import Term, unique_names
from tfkd.losses.base import DistillationLoss
from tfkd.networks import token_ids
from tfkd.networks.accept import check_finite
from tfkd.networks.layer_parts import flat_layers
from tfkd.schedules import Schedule
from tfkd.teachers.features import FINAL, Taps
from tfkd.teachers.forward import Teachers, as_list, freeze
from tfkd.teachers.precomputed import split
from tfkd.types import Data, Structure, Teacher


@keras.saving.register_keras_serializable(package="tfkd")
class Distiller(Saving, Balancing, Objective):
    """Trains a student on the soft targets and features of a frozen teacher.

    Args:
        teacher: a trained model, or a list of several, whose outputs are averaged:
            class scores as probabilities, other outputs as they are. A tf_keras or
            Keras 3 model, a restored SavedModel, or a callable on tensors. It is
            frozen, runs with `training=False`, and is not saved in checkpoints. Or a
            `tfkd.TeacherCache`: then no teacher runs, and the data are the cache's
            batches.
        student: the `tf_keras` model to train. It stays a plain model:
            `distiller.student` is what you export.
        distillation_losses: one `tfkd.losses.DistillationLoss` or a list.
        distillation_loss_weights: a number or schedule for each loss; default: 1.
        student_loss_weight: w in [0, 1], a number or a schedule: the weight of
            the loss on the labels. At 0 no labels are needed, at 1 the teacher does
            not run. Numbers become constants when the step is traced: use a schedule
            for a weight that changes during training.
        weigh_distillation: whether `sample_weight` and `class_weight` weigh the distillation
            losses of an example as they weigh its loss on the label. None: they do, with a
            warning for `class_weight`, which is mostly meant for the labels alone.
        name: name of the model.
        **kwargs: passed to `keras.Model`.

    Attributes:
        student, teacher: the two models (`teacher` as it was passed).
        distillation_losses, distillation_loss_weights: lists of one length.
        student_loss_weight: w.

    Raises:
        ValueError: if an argument is not a model; if teacher and student share weights,
            differ in input, number of classes or order of outputs, or hold NaN; if weights
            are of the wrong number, NaN or negative; for layer names that do not exist.

    Warns:
        UserWarning: during `fit` or `evaluate`, if only the values of an output show
            whether it holds logits or probabilities, or if they contradict the loss given
            to `compile`. This is decided once, from the first examples of arrays (for other
            data from random inputs of the same shape), and then fixed. Also if a loss takes
            independent labels (sigmoids, binary_crossentropy) for classes.

    Logs: `loss` (the minimized total with regularization), `total_loss`,
    `student_loss`, `distillation_loss` (Σ wᵢ · KDᵢ), each loss under its own name
    (unweighted), `agreement` (fraction of examples for which teacher and student
    predict the same class), and the metrics given to `compile`. Training logs are
    computed in training mode, with dropout and batch statistics; `val_agreement` and
    the other logs of `validation_data` measure the student in inference mode.

    Reference: Hinton et al. 2015, https://arxiv.org/abs/1503.02531

    Example:
        >>> import numpy as np, tf_keras as keras, tfkd
        >>> net = lambda units: keras.Sequential([
        ...     keras.layers.Dense(units, "relu", input_shape=(4,)), keras.layers.Dense(3)])
        >>> distiller = tfkd.Distiller(
        ...     net(32), net(4), tfkd.losses.LogitsDistillation(4.0), student_loss_weight=0.1)
        >>> distiller.compile(
        ...     "adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        >>> x, y = np.ones((8, 4), "float32"), np.zeros(8, "int32")
        >>> history = distiller.fit(x, y, verbose=0)
        >>> sorted(history.history)[:3]
        ['agreement', 'distillation_loss', 'logits_distillation']
    """

    optimizer: Any
    train_function: Any

    def __init__(
        self,
        teacher: Teacher,
        student: keras.Model,
        distillation_losses: DistillationLoss | Sequence[DistillationLoss],
        distillation_loss_weights: float | Schedule | Sequence[float | Schedule] | None = None,
        student_loss_weight: Schedule | float = 0.5,
        name: str = "distiller",
        weigh_distillation: bool | None = None,
        **kwargs: Any,
    ):
        super().__init__(name=name, **kwargs)
        # The logs of a step are already reduced over the replicas: Keras must not sum them.
        self.distribute_reduction_method = "first"
        teachers = as_list(teacher)
        validation.check_student(student)
        validation.check_apart(teachers, student)
        pairing.check_inputs(teachers, student)
        for side, one in (*(("teacher", one) for one in teachers), ("student", student)):
            check_finite(side, one)
        losses, weights = validation.check_losses(distillation_losses, distillation_loss_weights)
        if not all(loss.teacher_layer_name or loss.student_layer_name for loss in losses):
            pairing.check_outputs(teachers, student)

        self.student = student
        # Bypasses Keras's attribute tracking: neither trained nor saved in checkpoints.
        self._set_untracked(_teacher=teacher, _teacher_seen=False, _ranks=targets.Ranks())
        self._set_untracked(distillation_losses=losses, distillation_loss_weights=weights)
        self._set_untracked(_decided=False, _label_kinds=None, _pacing=None, _balance=None)
        self.student_loss_weight = validation.check_student_weight(student_loss_weight)
        self.weigh_distillation = checks.instance(
            "weigh_distillation", weigh_distillation, (bool, type(None)), "True, False or None"
        )
        self._make_taps(teachers)
        self._make_terms()
        for one in teachers:
            freeze(one)
        self._make_trackers()
        # Keras uses these to name the losses and metrics of several outputs.
        self._set_untracked(output_names=getattr(student, "output_names", None))
        self.built = student.built

    def _set_untracked(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def _make_taps(self, teachers: list[Any]) -> None:
        losses = self.distillation_losses
        theirs = [n.teacher_layer_name for n in losses if n.teacher_layer_name]
        mine = [n.student_layer_name for n in losses if n.student_layer_name]
        precomputed = validation.precomputed(teachers, losses)
        forward = precomputed.forward(theirs) if precomputed else Teachers(teachers, theirs)
        own = Taps(self.student, mine, "student")
        self._set_untracked(_precomputed_teacher=precomputed)
        self._set_untracked(_teacher_feature_extractor=forward, _student_feature_extractor=own)
        for loss in losses:
            loss.validate_model_compatibility(self.teacher, self.student)
            pairing.check_final_outputs(loss, forward, own)

    def _make_terms(self) -> None:
        """One term per loss; its projector is built if the shapes are known already."""
        names = unique_names(self.distillation_losses)
        pairs = zip(self.distillation_losses, names, strict=True)
        terms = [Term(loss, name, self._projector_of(loss, name)) for loss, name in pairs]
        self._set_untracked(_terms=terms)
        self.projectors = [term.projector for term in terms if term.projector is not None]

    def _projector_of(self, loss: Any, name: str) -> Projector | None:
        kind = getattr(loss, "projector", None)
        if kind is None:
            return None
        mode, layer = (kind, None) if isinstance(kind, str) else ("auto", kind)
        projector = Projector(mode, layer, name=f"projector_{name}")
        shapes = [
            self._teacher_feature_extractor.static_shape(loss.teacher_layer_name or FINAL),
            self._student_feature_extractor.static_shape(loss.student_layer_name or FINAL),
        ]
        if None not in shapes:
            projector.build(shapes)
        return projector

    def _make_trackers(self) -> None:
        """Metrics for the means over an epoch; untracked, as they are not model weights."""
        names = ("loss", "total_loss", "student_loss", "distillation_loss")
        for name in names:
            attribute = "_loss_tracker" if name == "loss" else f"{name}_tracker"
            self._set_untracked(**{attribute: keras.metrics.Mean(name=name)})
        terms = [keras.metrics.Mean(name=term.name) for term in self._terms]
        has_agreement = self._agreement_term() is not None
        agreement = keras.metrics.Mean(name="agreement") if has_agreement else None
        self._set_untracked(_term_trackers=terms, _agreement_tracker=agreement)

    @property
    def teacher(self) -> Teacher:
        """The teacher, or the list of teachers, as passed."""
        return self._teacher

    def _own_trackers(self) -> list[Any]:
        own = [self._loss_tracker, self.total_loss_tracker, self.student_loss_tracker]
        own += [self.distillation_loss_tracker, *self._term_trackers]
        return own if self._agreement_tracker is None else [*own, self._agreement_tracker]

    @property
    def metrics(self) -> list[Any]:
        """The Distiller's own trackers, then the metrics of `compile`."""
        own = self._own_trackers()
        seen = {id(metric) for metric in own}
        # Keras's "loss" metric is the student's loss; ours is the minimized total.
        if self.compiled_loss is not None:
            seen.update(id(m) for m in self.compiled_loss.metrics if m.name == "loss")
        return own + [m for m in super().metrics if id(m) not in seen]

    def compile(
        self,
        optimizer: str | keras.optimizers.Optimizer = "adam",
        loss: Any = None,
        metrics: Any = None,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """Configures training, as in `keras.Model.compile`.

        A student that is not compiled yet is compiled for `student.evaluate` alone, with this
        loss and these metrics; to train it without its teacher compile it.

        Args:
            optimizer: trains the student and the projectors.
            loss: the student's loss on the labels: a string, function or
                instance, or a list or dict of them for several outputs. May be
                None only if `student_loss_weight` is 0.
            metrics: list, tuple or dict of metrics of the student's outputs.
            *args, **kwargs: the other arguments of `keras.Model.compile`, in its order.

        Raises:
            ValueError: for a missing loss, names of losses and metrics that Keras does not
                have, losses or metrics of outputs that the student does not have, and metrics
                of the wrong type.
        """
        if loss is None and not is_zero(self.student_loss_weight):
            raise ValueError(
                "'loss' cannot be `None`: it is the student's loss on the labels. To distil "
                "without labels pass student_loss_weight=0 to the Distiller."
            )
        if metrics is not None and not isinstance(metrics, (list, tuple, dict)):
            fix = f"Pass [{metrics!r}]." if isinstance(metrics, str) else None
            raise checks.value_error("metrics", "a list, tuple or dict of metrics", metrics, fix)
        arguments.check(self.student, loss, metrics)
        validation.warn_of_logits(loss, self.student)
        # The kinds of the outputs depend on the loss: decide again.
        self._set_untracked(_decided=False, _label_kinds=None)
        super().compile(optimizer, loss, metrics, *args, **kwargs)
        scaled = keras.mixed_precision.LossScaleOptimizer
        if _is_float16(self.student) and not isinstance(self.optimizer, scaled):
            self.optimizer = scaled(self.optimizer)
        evaluation.compile_student(self.student, loss, metrics, args, kwargs)

    def call(self, inputs: Structure, training: bool | None = None, **kwargs: Any) -> Structure:
        """The student's outputs."""
        return self.student(split(inputs)[0], training=training, **kwargs)

    def fit(
        self, x: Data | None = None, y: Structure | None = None, *args: Any, **kwargs: Any
    ) -> keras.callbacks.History:
        """`keras.Model.fit` with additional checks of the data; x may be a `Curriculum`.

        A Curriculum is read from the step at which training begins: `initial_epoch` times its
        steps per epoch, or where `BackupAndRestore` resumes; a second `fit` without
        `initial_epoch` begins anew. A `CurriculumUpdate` is added to the callbacks if there is
        none: an adaptive pace is updated, and `fraction` logged.

        `sample_weight` and `class_weight` weigh the losses on the labels, and the distillation
        losses as `weigh_distillation` says.

        Warns once if the student starts close to its teacher but, in inference mode, is
        further from it after an epoch than before training. This is measured on up to 256
        examples of `validation_data` or `x`, if these are arrays or a data set that can be
        read twice: not a generator, nor a data set that shuffles, caches or draws random
        numbers.

        Raises:
            TypeError: for arguments that a Curriculum has itself, such as `y`.
            ValueError: for empty data, labels outside the classes, token ids outside of an
                Embedding (of arrays before training, of other data in the step that reads
                them; on a GPU TensorFlow does not look), a student without trainable weights,
                or a ModelCheckpoint whose file could not be loaded.
        """
        if isinstance(x, Curriculum):
            return self._fit_paced(x, Pacing(self, x, y, args, kwargs))
        validation.check_trainable(self.student)
        self._check_data(x, y, kwargs.get("sample_weight"))
        held_out = kwargs.get("validation_data", args[5] if len(args) > 5 else None)
        refuse("validation_data", held_out)
        given = kwargs.get("callbacks", args[3] if len(args) > 3 else None)
        if replicas.writes(self):
            arguments.check_folders(given)
        self._warn_of_class_weight(kwargs.get("class_weight", args[7] if len(args) > 7 else None))
        if isinstance(held_out, (list, tuple)) and len(held_out) > 1:
            # Checked here, since Keras converts them before it calls `evaluate`.
            token_ids.check("validation_data", split(held_out[0])[0], self._models())
            arguments.check_arrays("validation_data", self.student, split(held_out[0])[0], held_out)
            targets.check(held_out[1], None, getattr(self, "loss", None))
        known_faults.warn_of_overflow(self.student)
        self.check_checkpoints(given)
        if self._precomputed_teacher is not None and not is_one(self.student_loss_weight):
            validation.check_precomputed(self._precomputed_teacher, x)
        args, kwargs = drift.watched(self, (x, y, *args), kwargs)
        with self._ids_explained():
            return super().fit(*args, **kwargs)

    def _fit_paced(self, data: Curriculum, pacing: Pacing) -> keras.callbacks.History:
        shape = self._student_feature_extractor.static_shape(FINAL)
        y = data.data[1] if len(data.data) > 1 else None
        targets.check(y, shape, getattr(self, "loss", None))
        self._set_untracked(_pacing=pacing)
        try:
            return self.fit(**pacing.arguments)
        finally:
            self._set_untracked(_pacing=None)

    def _maybe_load_initial_counters_from_ckpt(
        self, steps_per_epoch: int | None, initial_epoch: int
    ) -> tuple[int, int]:
        # Keras asks for the place to begin at after callbacks have restored the model, and
        # before it reads the data.
        place = super()._maybe_load_initial_counters_from_ckpt(steps_per_epoch, initial_epoch)
        if self._pacing is not None:
            self._pacing.begin_at(*place)
        return place

    def _warn_of_class_weight(self, class_weight: Any) -> None:
        if class_weight and self.weigh_distillation is None:
            self.weigh_distillation = True
            checks.warn(
                "Distiller: class_weight weighs the distillation losses of each example as it "
                "weighs the loss on its label. Pass weigh_distillation=False to the Distiller to "
                "weigh the labels alone, or True if this is meant."
            )

    def evaluate(
        self, x: Data | None = None, y: Structure | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        """`keras.Model.evaluate` with additional checks of the data. Changes no weight."""
        refuse("x", x)
        self._check_data(x, y, kwargs.get("sample_weight"))
        with self._ids_explained():
            return super().evaluate(x, y, *args, **kwargs)

    @contextlib.contextmanager
    def _ids_explained(self) -> Iterator[None]:
        """Turns TensorFlow's error for ids outside of an Embedding into one about the data."""
        try:
            yield
        except tf.errors.InvalidArgumentError as error:
            told = token_ids.explained("x", error, self._models())
            if told is error:
                raise
            raise told from None

    def _models(self) -> list[tuple[str, Any]]:
        return [("student", self.student), *(("teacher", one) for one in as_list(self._teacher))]

    def _check_data(self, x: Any, y: Any, sample_weight: Any) -> None:
        validation.check_calibrated(self.student)
        shape = self._student_feature_extractor.static_shape(FINAL)
        loss, are_used = getattr(self, "loss", None), not is_zero(self.student_loss_weight)
        validation.check_fit_data(x, y, sample_weight, shape, loss, are_used)
        token_ids.check("x", split(x)[0], self._models())
        runs = self._precomputed_teacher is None and not is_one(self.student_loss_weight)
        if not is_one(self.student_loss_weight):
            pairing.check_input_order(as_list(self._teacher), self.student, x)
        if runs and not self._teacher_seen:
            teachers = as_list(self._teacher)
            validation.check_float16(teachers, self._teacher_feature_extractor, x)
            self._set_untracked(_teacher_seen=True)
        output_kinds.decide(self, x)

    def make_train_function(self, force: bool = False) -> Callable[[Any], dict[str, Any]]:
        """As in Keras, but the step's variables are created first, so that it is traced once."""
        if self.train_function is not None and not force:
            return self.train_function
        function = super().make_train_function(force)

        def first(iterator: Any) -> dict[str, Any]:
            if self.train_function is first:
                variables.create(self, getattr(iterator, "element_spec", None))
                self.train_function = function
            return function(iterator)

        self.train_function = first
        return first

    def train_step(self, data: Structure) -> dict[str, Any]:
        """One training step: the teacher runs outside the gradient tape, the student inside."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        x, stored = split(x)
        taught = self._teach(x, stored)
        with tf.GradientTape() as tape:
            outputs = self._student_feature_extractor(x, training=True)
            loss = self._objective(x, y, sample_weight, outputs, taught)
        self.built = True  # the first call has built the student
        self.optimizer.minimize(loss, self.trainable_variables, tape=tape)
        return self.compute_metrics(x, y, outputs[FINAL], sample_weight)

    def test_step(self, data: Structure) -> dict[str, Any]:
        """The losses with `training=False`; only metrics are updated.

        With a cache as teacher and data without its outputs, the student's loss alone.
        """
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        x, stored = split(x)
        outputs = self._student_feature_extractor(x, training=False)
        if stored is None and self._precomputed_teacher is not None:
            self._objective(x, y, sample_weight, outputs, None)
            logs = self.compute_metrics(x, y, outputs[FINAL], sample_weight)
            unknown = (self.distillation_loss_tracker, *self._term_trackers)
            names = {t.name for t in (*unknown, self._agreement_tracker) if t is not None}
            return {name: value for name, value in logs.items() if name not in names}
        self._objective(x, y, sample_weight, outputs, self._teach(x, stored))
        return self.compute_metrics(x, y, outputs[FINAL], sample_weight)

    def compute_metrics(
        self, x: Structure, y: Structure | None, y_pred: Structure, sample_weight: Structure | None
    ) -> dict[str, Any]:
        """Updates the metrics of `compile`, if there are labels; returns all logs."""
        container = self.compiled_metrics
        chosen = tf.nest.flatten([container._user_metrics, container._user_weighted_metrics])
        # Targets need the structure of the outputs only if there are metrics.
        if y is not None and any(metric is not None for metric in chosen):
            y = self._ranks(y, y_pred, getattr(self, "loss", None))
            container.update_state(y, y_pred, sample_weight)
        return self.get_metrics_result()

    def get_metrics_result(self) -> dict[str, Any]:
        """All logs; on several replicas the Distiller's means share one all-reduce.

        Keras does two per mean, each a round of communication between all workers.
        """
        if not replicas.can_merge():
            return super().get_metrics_result()
        own = self._own_trackers()
        sums = tf.stack([[tracker.total, tracker.count] for tracker in own], axis=1)
        means = tf.unstack(tf.math.divide_no_nan(*tf.unstack(replicas.merged_sum(sums))))
        known = {tracker.name: mean for tracker, mean in zip(own, means, strict=True)}
        mine = {id(tracker) for tracker in own}
        for metric in self.metrics:
            if id(metric) not in mine:
                result = metric.result()
                known.update(result if isinstance(result, dict) else {metric.name: result})
        return known


def _is_float16(model: Any) -> bool:
    layers = flat_layers(model, include_self=False)
    return any(layer.dtype_policy.name == "mixed_float16" for layer in layers)
