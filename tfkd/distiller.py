"""The Distiller: a Keras model whose training step teaches a student.

    total = w · student_loss + (1 − w) · Σ wᵢ · KDᵢ
    loss  = total + the student's own regularizers

It has the constructor, attributes and metric names of `keras.distillation` in
Keras 3.15. The student runs once a step and each teacher at most once.
"""

from __future__ import annotations

import contextlib
import inspect
from typing import Any

import tensorflow as tf
import tf_keras as keras

from tfkd import checks, replicas, schedules, validation
from tfkd.losses.base import DistillationLoss, ElementwiseLoss, mean_of, weighted_sums
from tfkd.projectors import Projector
from tfkd.taps import FINAL, Taps
from tfkd.teachers import Teachers, as_list, freeze, mean_probability, mean_value, to_logits


@keras.saving.register_keras_serializable(package="tfkd")
class Distiller(keras.Model):
    """Trains a student model with the help of a frozen teacher.

    Args:
        teacher: a trained model, or a list of several (their outputs are
            averaged: class scores in probability, anything else in value). A
            tf_keras or Keras 3 model, a restored SavedModel, or a callable on
            tensors. It is frozen, runs with `training=False`, and is left out of
            checkpoints.
        student: the `tf_keras` model to train. It stays a plain model:
            `distiller.student` is what you export.
        distillation_losses: one `tfkd.losses.DistillationLoss` or a list.
        distillation_loss_weights: one number or schedule for each loss; 1 each
            by default.
        student_loss_weight: w in [0, 1], a number or a schedule: the weight of
            the loss on the labels. 0 needs no labels.
        name: name of the model.
        **kwargs: passed to `keras.Model`.

    Attributes:
        student, teacher: the two models (`teacher` as it was passed).
        distillation_losses, distillation_loss_weights: lists of one length.
        student_loss_weight: w.

    Raises:
        ValueError: for models that are none, share weights, differ in input or
            number of classes, or hold NaN; for weights of the wrong length, NaN
            or negative; for layer names that do not exist.

    Logs: `loss` (what is minimised), `total_loss`, `student_loss`,
    `distillation_loss` (Σ wᵢ · KDᵢ), each loss under its own name (unweighted),
    `agreement` (share of examples on which both models choose the same class),
    and the metrics given to `compile`.

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

    def __init__(
        self,
        teacher: Any,
        student: keras.Model,
        distillation_losses: Any,
        distillation_loss_weights: Any = None,
        student_loss_weight: Any = 0.5,
        name: str = "distiller",
        **kwargs: Any,
    ):
        super().__init__(name=name, **kwargs)
        teachers = as_list(teacher)
        validation.check_student(student)
        validation.check_apart(teachers, student)
        validation.check_inputs(teachers, student)
        for one in teachers:
            validation.check_finite_weights(one, "teacher")
        validation.check_finite_weights(student, "student")
        losses, weights = _check_losses(distillation_losses, distillation_loss_weights)

        self.student = student
        self._hide_teacher = False
        # Set past Keras's tracking: not part of a checkpoint, not trained.
        self._set_untracked("_teacher", teacher)
        self._set_untracked("distillation_losses", losses)
        self._set_untracked("distillation_loss_weights", weights)
        self.student_loss_weight = _check_student_weight(student_loss_weight)
        self._make_taps(teachers)
        self._make_projectors()
        for one in teachers:
            freeze(one)
        self._make_trackers()

    def _set_untracked(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _make_taps(self, teachers: list[Any]) -> None:
        losses = self.distillation_losses
        theirs = [n.teacher_layer_name for n in losses if n.teacher_layer_name]
        mine = [n.student_layer_name for n in losses if n.student_layer_name]
        self._set_untracked("_teacher_feature_extractor", Teachers(teachers, theirs))
        self._set_untracked("_student_feature_extractor", Taps(self.student, mine, "student"))
        for loss in losses:
            loss.validate_model_compatibility(self.teacher, self.student)
            validation.check_final_outputs(
                loss, self._teacher_feature_extractor, self._student_feature_extractor
            )

    def _make_projectors(self) -> None:
        """One projector for each loss that asks for one, built where shapes are known."""
        names = _unique([loss.name for loss in self.distillation_losses])
        self._set_untracked("_term_names", names)
        self.projectors: list[Any] = []
        places: dict[int, int] = {}
        for index, loss in enumerate(self.distillation_losses):
            kind = getattr(loss, "projector", None)
            if kind is None:
                continue
            mode, layer = (kind, None) if isinstance(kind, str) else ("auto", kind)
            projector = Projector(mode, layer, name=f"projector_{names[index]}")
            places[index] = len(self.projectors)
            self.projectors.append(projector)
            shapes = [
                self._teacher_feature_extractor.static_shape(loss.teacher_layer_name or FINAL),
                self._student_feature_extractor.static_shape(loss.student_layer_name or FINAL),
            ]
            if None not in shapes:
                projector.build(shapes)
        self._set_untracked("_projector_places", places)

    def _make_trackers(self) -> None:
        self._loss_tracker = keras.metrics.Mean(name="loss")
        self.total_loss_tracker = keras.metrics.Mean(name="total_loss")
        self.student_loss_tracker = keras.metrics.Mean(name="student_loss")
        self.distillation_loss_tracker = keras.metrics.Mean(name="distillation_loss")
        self._term_trackers = [keras.metrics.Mean(name=name) for name in self._term_names]
        self._agreement_tracker = None
        if any(loss.on_logits for loss in self.distillation_losses):
            self._agreement_tracker = keras.metrics.Mean(name="agreement")

    @property
    def teacher(self) -> Any:
        """The teacher, or the list of teachers, as passed."""
        return self._teacher

    @property
    def metrics(self) -> list[Any]:
        """The Distiller's own trackers, then the metrics of `compile`."""
        own = [self._loss_tracker, self.total_loss_tracker, self.student_loss_tracker]
        own += [self.distillation_loss_tracker, *self._term_trackers]
        if self._agreement_tracker is not None:
            own.append(self._agreement_tracker)
        seen = {id(metric) for metric in own}
        # Keras's own "loss" is the student's alone: ours is what is minimised.
        if self.compiled_loss is not None:
            seen.update(id(m) for m in self.compiled_loss.metrics if m.name == "loss")
        return own + [m for m in super().metrics if id(m) not in seen]

    def compile(self, optimizer: Any = "adam", loss: Any = None, metrics: Any = None, **kwargs: Any):
        """Configures training, as in `keras.Model.compile`.

        Args:
            optimizer: trains the student (and projectors).
            loss: the student's loss on the labels: a string, function or
                instance, or a list or dict of them for several outputs. May be
                None only if `student_loss_weight` is 0.
            metrics: list, tuple or dict of metrics of the student's outputs.
            **kwargs: anything else that `keras.Model.compile` takes.

        Raises:
            ValueError: for a missing loss, or metrics of the wrong type.
        """
        if loss is None and not _is_zero(self.student_loss_weight):
            raise ValueError(
                "'loss' cannot be `None`: it is the student's loss on the labels. To distil "
                "without labels pass student_loss_weight=0 to the Distiller."
            )
        if metrics is not None and not isinstance(metrics, (list, tuple, dict)):
            raise checks.value_error("metrics", "a list, tuple or dict of metrics", metrics)
        validation.warn_of_logits(loss, self.student)
        super().compile(optimizer=optimizer, loss=loss, metrics=metrics, **kwargs)
        if _is_float16(self.student) and not isinstance(
            self.optimizer, keras.mixed_precision.LossScaleOptimizer
        ):
            self.optimizer = keras.mixed_precision.LossScaleOptimizer(self.optimizer)

    def call(self, inputs: Any, training: Any = None, **kwargs: Any) -> Any:
        """The student's outputs."""
        return self.student(inputs, training=training, **kwargs)

    def fit(self, x: Any = None, y: Any = None, **kwargs: Any) -> Any:
        """`keras.Model.fit`, after a look at the data.

        Raises:
            ValueError: for no data at all, or labels outside the classes.
        """
        self._check_data(x, y)
        return super().fit(x, y, **kwargs)

    def evaluate(self, x: Any = None, y: Any = None, **kwargs: Any) -> Any:
        """`keras.Model.evaluate`, after a look at the data. Changes no weight."""
        self._check_data(x, y)
        return super().evaluate(x, y, **kwargs)

    def _check_data(self, x: Any, y: Any) -> None:
        shape = self._student_feature_extractor.static_shape(FINAL)
        loss = self.compiled_loss._user_losses if self.compiled_loss is not None else None
        name = loss if isinstance(loss, str) else getattr(loss, "name", "") or str(loss)
        sparse = "sparse" in name
        validation.check_fit_data(x, y, shape[-1] if shape else None, sparse)

    def train_step(self, data: Any) -> dict[str, Any]:
        """One step: teacher outside the tape, student once inside it."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        taught = self._teach(x)
        with tf.GradientTape() as tape:
            outputs = self._student_feature_extractor(x, training=True)
            loss = self._objective(x, y, sample_weight, outputs, taught)
        self.optimizer.minimize(loss, self.trainable_variables, tape=tape)
        return self.compute_metrics(x, y, outputs[FINAL], sample_weight)

    def test_step(self, data: Any) -> dict[str, Any]:
        """The same losses with `training=False`; nothing changes but metrics."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        outputs = self._student_feature_extractor(x, training=False)
        self._objective(x, y, sample_weight, outputs, self._teach(x))
        return self.compute_metrics(x, y, outputs[FINAL], sample_weight)

    def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any) -> dict[str, Any]:
        """Updates the metrics of `compile` (where there are labels); returns all logs."""
        if y is not None:
            self.compiled_metrics.update_state(y, y_pred, sample_weight)
        return self.get_metrics_result()

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        """Runs both models on x and returns what a step would minimise.

        `y_pred` is accepted for the sake of Keras's signature; the student runs
        here, since losses on layers need what it computes on the way.
        """
        outputs = self._student_feature_extractor(x, training=training)
        return self._objective(x, y, sample_weight, outputs, self._teach(x))

    def _teach(self, x: Any) -> Any:
        """The teachers' outputs, or None where they weigh nothing."""
        if _is_one(self.student_loss_weight):
            return None
        return self._teacher_feature_extractor(x)

    def _objective(self, x, y, sample_weight, outputs, taught):
        """This replica's share of the loss; the trackers see the local mean."""
        size = tf.cast(tf.shape(tf.nest.flatten(x)[0])[0], tf.float32)
        share = replicas.share_of_batch(size)
        step = self._step()

        student_loss = self._student_loss(y, sample_weight, outputs[FINAL], share)
        distillation_loss = tf.constant(0.0)
        if taught is not None:
            distillation_loss = self._distillation(
                y, sample_weight, outputs, taught, step, share, size
            )
        weight = schedules.value_at(self.student_loss_weight, step)
        total = weight * student_loss + (1.0 - weight) * distillation_loss
        penalty = tf.constant(0.0)
        if self.losses:
            penalty = tf.add_n([tf.cast(v, tf.float32) for v in self.losses]) / replicas.count()
        loss = total + penalty
        for tracker, value in (
            (self.student_loss_tracker, student_loss),
            (self.distillation_loss_tracker, distillation_loss),
            (self.total_loss_tracker, total),
            (self._loss_tracker, total + penalty * replicas.count() * share),
        ):
            tracker.update_state(tf.math.divide_no_nan(value, share), sample_weight=size)
        return loss

    def _step(self) -> Any:
        """Steps that the optimizer has made: what every schedule is a function of."""
        if getattr(self, "optimizer", None) is None:
            return tf.constant(0, tf.int64)
        return tf.convert_to_tensor(self.optimizer.iterations)

    def _student_loss(self, y, sample_weight, y_pred, share):
        if y is None or _is_zero(self.student_loss_weight) and self.compiled_loss is None:
            return tf.constant(0.0)
        # Keras returns the local mean / replicas; batches may be uneven.
        value = self.compiled_loss(y, y_pred, sample_weight)
        return tf.cast(value, tf.float32) * (replicas.count() * share)

    def _distillation(self, y, sample_weight, outputs, taught, step, share, size):
        """Σ wᵢ · KDᵢ, this replica's share of it."""
        finals, features = taught
        scores = None
        if self._agreement_tracker is not None:
            scores = (
                mean_probability([to_logits(f) for f in finals]),
                to_logits(outputs[FINAL]),
            )
            self._track_agreement(*scores)
        result = tf.constant(0.0)
        for index, loss in enumerate(self.distillation_losses):
            teacher, student = self._pair(index, loss, finals, features, outputs, scores)
            value = self._one_loss(loss, teacher, student, y, sample_weight, step, share)
            local = tf.math.divide_no_nan(value, share)
            self._term_trackers[index].update_state(local, sample_weight=size)
            weight = schedules.value_at(self.distillation_loss_weights[index], step)
            result = result + weight * value
        return result

    def _pair(self, index, loss, finals, features, outputs, scores):
        """What one loss compares: (teacher's, student's)."""
        on_final = loss.teacher_layer_name is None
        if loss.on_logits and on_final and loss.student_layer_name is None:
            return scores
        teacher = mean_value(finals) if on_final else features[loss.teacher_layer_name]
        student = outputs[loss.student_layer_name or FINAL]
        place = self._projector_places.get(index)
        if place is not None and not tf.nest.is_nested(student):
            mask, shape = getattr(student, "_keras_mask", None), student.shape
            teacher, student = self.projectors[place]([teacher, student])
            if mask is not None and student.shape[1:-1] == shape[1:-1]:
                student._keras_mask = mask
        return teacher, student

    def _one_loss(self, loss, teacher, student, y, sample_weight, step, share):
        if tf.nest.is_nested(sample_weight) and loss.student_layer_name is not None:
            sample_weight = None  # weights of single outputs say nothing of a layer
        known = {"y": y, "sample_weight": sample_weight, "step": step}
        loss.validate_outputs(teacher, student)
        if type(loss).compute_loss is ElementwiseLoss.compute_loss:
            sums = weighted_sums(loss.elements(teacher, student, **known), sample_weight)
            return tf.add_n(
                [mean_of(s, None if n is None else replicas.global_sum(n)) for s, n in sums]
            )
        value = loss.compute_loss(teacher, student, **_accepted(loss.compute_loss, known))
        value = tf.cast(value, tf.float32)
        if value.shape.rank != 0:
            raise ValueError(
                f"Distillation loss {type(loss).__name__} returned a non-scalar loss with shape "
                f"{value.shape}. compute_loss must return a scalar tensor: take the mean over "
                "the batch, or implement `elements` of ElementwiseLoss."
            )
        return value * share

    def _track_agreement(self, teacher, student):
        pairs = zip(tf.nest.flatten(teacher), tf.nest.flatten(student), strict=True)
        for theirs, mine in pairs:
            if theirs.shape[-1] == 1:
                same = (theirs > 0) == (mine > 0)
            else:
                same = tf.argmax(theirs, -1) == tf.argmax(mine, -1)
            self._agreement_tracker.update_state(tf.cast(same, tf.float32))

    def scheduled_values(self, step: int | None = None) -> dict[str, float]:
        """Every weight and temperature at a step, as numbers.

        Args:
            step: the optimizer's step; now by default.

        Returns:
            {"student_loss_weight": w, "weight/<loss>": wᵢ, "temperature/<loss>": T}.
        """
        if step is None:
            step = int(self._step())
        values = {"student_loss_weight": self.student_loss_weight}
        for name, loss, weight in zip(
            self._term_names, self.distillation_losses, self.distillation_loss_weights, strict=True
        ):
            values[f"weight/{name}"] = weight
            if hasattr(loss, "temperature"):
                values[f"temperature/{name}"] = loss.temperature
        return {key: float(schedules.value_at(value, step)) for key, value in values.items()}

    def save_weights(self, *args: Any, **kwargs: Any) -> Any:
        """`keras.Model.save_weights`, without the frozen teacher."""
        with self._without_teacher():
            return super().save_weights(*args, **kwargs)

    def load_weights(self, *args: Any, **kwargs: Any) -> Any:
        """`keras.Model.load_weights` of what `save_weights` wrote."""
        with self._without_teacher():
            return super().load_weights(*args, **kwargs)

    @contextlib.contextmanager
    def _without_teacher(self):
        """Keras saves what `dir` lists; a whole `.keras` file needs the teacher."""
        self._hide_teacher = True
        try:
            yield
        finally:
            self._hide_teacher = False

    def __dir__(self):
        names = super().__dir__()
        return [n for n in names if n not in ("teacher", "_teacher")] if self._hide_teacher else names

    def get_config(self) -> dict[str, Any]:
        """Both models, the losses and the weights, as JSON.

        Raises:
            ValueError: if a teacher is not a tf_keras model.
        """
        for one in as_list(self.teacher):
            if not isinstance(one, keras.Model):
                raise checks.value_error(
                    "teacher",
                    "a tf_keras model, to be saved with the Distiller",
                    one,
                    "Save distiller.student, or the weights by save_weights, instead.",
                )
        serialize = keras.saving.serialize_keras_object
        many = isinstance(self.teacher, (list, tuple))
        return {
            "name": self.name,
            "teacher": [serialize(t) for t in self.teacher] if many else serialize(self.teacher),
            "student": serialize(self.student),
            "distillation_losses": [serialize(loss) for loss in self.distillation_losses],
            "distillation_loss_weights": [
                schedules.serialize(weight) for weight in self.distillation_loss_weights
            ],
            "student_loss_weight": schedules.serialize(self.student_loss_weight),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Distiller:
        """Makes the Distiller that `get_config` described."""

        def read(item):
            return keras.saving.deserialize_keras_object(item, custom_objects=custom_objects)

        config = dict(config)
        teacher = config["teacher"]
        config["teacher"] = [read(t) for t in teacher] if isinstance(teacher, list) else read(teacher)
        config["student"] = read(config["student"])
        config["distillation_losses"] = [read(item) for item in config["distillation_losses"]]
        config["distillation_loss_weights"] = [
            schedules.deserialize(item) for item in config["distillation_loss_weights"]
        ]
        config["student_loss_weight"] = schedules.deserialize(config["student_loss_weight"])
        return cls(**config)

    def get_build_config(self) -> dict[str, Any]:
        """Shapes of the projectors' inputs."""
        return {"projectors": [projector.shapes for projector in self.projectors]}

    def build_from_config(self, config: dict[str, Any]) -> None:
        """Makes the projectors' weights, so that a file's weights find their place."""
        for projector, shapes in zip(self.projectors, config["projectors"], strict=True):
            if shapes is not None and not projector.built:
                projector.build(shapes)


def _check_losses(losses: Any, weights: Any) -> tuple[list[Any], list[Any]]:
    if losses is None:
        raise ValueError(
            "'distillation_losses' cannot be `None`. Pass a distillation loss (such as "
            "tfkd.losses.LogitsDistillation()) or a list of them."
        )
    single = not isinstance(losses, (list, tuple))
    losses = [losses] if single else list(losses)
    if not losses:
        raise checks.value_error("distillation_losses", "at least one loss", losses)
    for loss in losses:
        checks.instance(
            "distillation_losses", loss, DistillationLoss, "instances of DistillationLoss"
        )
    if weights is None:
        return losses, [1.0] * len(losses)
    if not isinstance(weights, (list, tuple)):
        weights = [weights]
    if len(weights) != len(losses):
        raise ValueError(
            f"Number of distillation_loss_weights ({len(weights)}) must match number of "
            f"distillation_losses ({len(losses)}): one weight for each loss."
        )
    name = "distillation_loss_weights"
    return losses, [schedules.get(name, weight, checks.non_negative) for weight in weights]


def _check_student_weight(weight: Any) -> Any:
    try:
        return schedules.get("student_loss_weight", weight, checks.fraction)
    except TypeError as error:
        raise ValueError(str(error)) from error


def _unique(names: list[str]) -> list[str]:
    """a, a, b → a, a_1, b."""
    taken: list[str] = []
    for name in names:
        fresh, count = name, 0
        while fresh in taken:
            count += 1
            fresh = f"{name}_{count}"
        taken.append(fresh)
    return taken


def _is_zero(weight: Any) -> bool:
    return checks.is_number(weight) and weight == 0


def _is_one(weight: Any) -> bool:
    return checks.is_number(weight) and weight == 1


def _is_float16(model: Any) -> bool:
    layers = model._flatten_layers(include_self=False)
    return any(layer.dtype_policy.name == "mixed_float16" for layer in layers)


def _accepted(function: Any, known: dict[str, Any]) -> dict[str, Any]:
    """Those of the keyword arguments that a user's compute_loss takes."""
    parameters = inspect.signature(function).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return known
    return {name: value for name, value in known.items() if name in parameters}
