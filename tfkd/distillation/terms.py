"""Terms of the Distiller's loss: one per distillation loss, and the loss on the labels.

Each returns this replica's share of the mean over the global batch: the shares of
all replicas sum to the value that one replica would compute on the whole batch.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from typing import Any

import tensorflow as tf
import tf_keras as keras

from tfkd import replicas
from tfkd.distillation.projectors import Projector
from tfkd.losses.base import DistillationLoss, ElementwiseLoss, Shared, accepted, mask_of
from tfkd.losses.joint import JointLoss
from tfkd.losses.logits import BINARY, LogitsDistillation, is_a
from tfkd.losses.weighting import mean_of, weighted_sums
from tfkd.losses.wrapped import per_output
from tfkd.teachers.features import FINAL
from tfkd.teachers.forward import mean_probability, mean_value, to_logits
from tfkd.teachers.layout import TopK
from tfkd.teachers.top_k import agreement, bucketed
from tfkd.types import Structure

# Log names that a loss must not use.
_RESERVED = ("loss", "total_loss", "student_loss", "distillation_loss", "agreement")


def unique_names(losses: list[DistillationLoss]) -> list[str]:
    """Distinct names of the terms in logs: a, a, b → a, a_1, b; loss → loss_1."""
    taken = list(_RESERVED)
    for loss in losses:
        fresh, count = loss.name, 0
        while fresh in taken:
            count += 1
            fresh = f"{loss.name}_{count}"
        taken.append(fresh)
    return taken[len(_RESERVED) :]


@dataclasses.dataclass
class Term:
    """A distillation loss as used in a Distiller.

    Attributes:
        loss: the distillation loss.
        name: its name in logs, unique in the Distiller.
        projector: the trained projection of the student's features, or None.
        student_kinds: kind of each output of the student, one of `heads.KINDS`; None: not
            determined.
        teacher_kinds: the same for each teacher.
    """

    loss: DistillationLoss
    name: str
    projector: Projector | None = None
    student_kinds: list[str | None] | None = None
    teacher_kinds: list[list[str | None]] | None = None

    @property
    def on_scores(self) -> bool:
        """Whether the loss compares the class scores of the models' final outputs."""
        loss = self.loss
        return loss.on_logits and not (loss.teacher_layer_name or loss.student_layer_name)

    def pair(self, finals: list[Any], features: dict[str, Any], outputs: dict[str, Any]) -> Any:
        """The (teacher, student) tensors that the loss compares.

        Args:
            finals: final outputs, one per teacher.
            features: outputs of the teachers' layers, by name.
            outputs: the student's outputs, `taps.FINAL` and layers.
        """
        loss = self.loss
        if self.on_scores:
            student = to_logits(outputs[FINAL], self.student_kinds)
            if isinstance(finals[0], TopK):
                return self._best(finals[0], student)
            kinds: list[Any] = self.teacher_kinds or [None] * len(finals)
            logits = [to_logits(f, k) for f, k in zip(finals, kinds, strict=True)]
            for each in logits:
                loss.validate_outputs(each, student)
            return mean_probability(logits, sigmoids(loss, student)), student
        name = loss.teacher_layer_name
        teacher = mean_value(finals) if name is None else features[name]
        student = outputs[loss.student_layer_name or FINAL]
        if self.projector is None or tf.nest.is_nested(student) or tf.nest.is_nested(teacher):
            return teacher, student
        mask, shape = mask_of(student), student.shape
        teacher, student = self.projector([teacher, student])
        if mask is not None and student.shape[1:-1] == shape[1:-1]:
            student._keras_mask = mask
        return teacher, student

    def _best(self, teacher: TopK, student: Any) -> tuple[Any, Any]:
        """Both scores over the teacher's top-k classes and one bucket for all others."""
        mask = mask_of(student)
        teacher_z, student_z = bucketed(teacher, student, self.loss.temperature)  # type: ignore[attr-defined]
        if mask is not None:
            student_z._keras_mask = mask
        # The agreement cannot be computed from the buckets.
        student_z._tfkd_agreement = agreement(teacher, student)
        return teacher_z, student_z

    def value(
        self, teacher: Structure, student: Structure, known: dict[str, Any], share: tf.Tensor
    ) -> tuple[Any, list[Any] | None]:
        """This replica's share of the loss, and the elements of an ElementwiseLoss.

        Args:
            teacher, student: the result of `pair`.
            known: y, sample_weight and step, for the loss.
            share: this replica's fraction of the global batch.
        """
        loss = self.loss
        if tf.nest.is_nested(known["sample_weight"]) and loss.student_layer_name is not None:
            # Sample weights per output do not apply to features of a layer.
            known = {**known, "sample_weight": None}
        loss.validate_outputs(teacher, student)
        if type(loss).compute_loss is ElementwiseLoss.compute_loss:
            elements = loss.elements  # type: ignore[attr-defined]
            parts = elements(teacher, student, **accepted(elements, known))
            sums = weighted_sums(parts, known["sample_weight"], loss, student)
            means = [mean_of(s, None if n is None else replicas.global_sum(n)) for s, n in sums]
            return tf.add_n(means), parts
        value = loss.compute_loss(teacher, student, **accepted(loss.compute_loss, known))
        value = tf.cast(value, tf.float32)
        if value.shape.rank != 0:
            raise ValueError(
                f"Distillation loss {type(loss).__name__} returned a non-scalar loss with shape "
                f"{value.shape}. compute_loss must return a scalar tensor: take the mean over "
                "the batch, or implement `elements` of ElementwiseLoss."
            )
        # A replica may get no example of the last batch: a mean over none is NaN.
        return tf.where(share > 0.0, value, 0.0) * share, None

    def compared(self, teacher: Structure, student: Structure) -> Iterator[tuple[Any, Any, bool]]:
        """For each output: the teacher's and the student's scores, and whether of sigmoids."""
        each = (tf.nest.flatten(teacher), tf.nest.flatten(student), sigmoids(self.loss, student))
        return zip(*each, strict=True)

    def agreement(
        self, teacher: Structure, student: Structure, parts: list[Any] | None
    ) -> Iterator[tuple[Any, Any]]:
        """For each output of classes: 1 where both models predict the same one, and its mask."""
        for index, (theirs, mine, is_sigmoid) in enumerate(self.compared(teacher, student)):
            if (parts is not None and parts[index] is None) or is_number(mine, is_sigmoid):
                continue
            same = getattr(mine, "_tfkd_agreement", None)
            if same is not None:
                pass
            elif is_sigmoid:
                same = tf.reduce_mean(tf.cast((theirs > 0) == (mine > 0), tf.float32), -1)
            else:
                same = tf.cast(tf.argmax(theirs, -1) == tf.argmax(mine, -1), tf.float32)
            mask = mask_of(mine)
            yield same, None if mask is None else tf.cast(mask, tf.float32)


def sigmoids(loss: DistillationLoss, outputs: Structure) -> list[bool]:
    """For each output, whether its scores are independent sigmoids rather than a softmax."""
    flat = tf.nest.flatten(outputs)
    if isinstance(loss, LogitsDistillation):
        kinds = tf.nest.flatten(per_output(loss.loss, outputs))
        return [is_a(kind, BINARY) for kind in kinds]
    return [output.shape[-1] == 1 for output in flat]


def is_number(output: Any, is_sigmoid: bool) -> bool:
    """Whether an output is one number an example and no class score."""
    return not is_sigmoid and (len(output.shape) < 2 or output.shape[-1] == 1)


def shared_by(losses: list[DistillationLoss], container: Any, taught: Any) -> Shared:
    """Values shared by the losses of one step.

    Args:
        losses: the distillation losses.
        container: `compiled_loss` of the Distiller.
        taught: the teachers' outputs, or None; a joint loss on the labels may use them.
    """
    looks = isinstance(container, JointLoss) and taught is not None
    return Shared([*losses, container], mean_value(taught[0]) if looks else None)


def loss_on_labels(
    container: Any,
    y: Structure,
    y_pred: Structure,
    sample_weight: Structure | None,
    share: tf.Tensor,
    shared: Shared,
) -> tf.Tensor:
    """The loss given to `compile`: this replica's share of it.

    Keras divides each replica's mean by the number of replicas, which differs from
    the mean over the global batch if batches or masks are uneven. This is corrected
    in the weights of the outputs, which do not affect their logs.

    Args:
        container: `compiled_loss` of a Keras model.
        y, y_pred, sample_weight: as Keras passes them.
        share: this replica's fraction of the global batch.
        shared: values shared by the losses of this step.
    """
    if isinstance(container, JointLoss):
        return container.share(y, y_pred, sample_weight, shared)
    if replicas.count() > 1:
        if not container.built:
            container.build(y_pred)
        parts = (container._losses, container._loss_weights, tf.nest.flatten(y_pred))
        weights = [_on_global_batch(*each, share) for each in zip(*parts, strict=True)]
        container = copy.copy(container)
        container._loss_weights = weights
    return tf.cast(container(y, y_pred, sample_weight), tf.float32)


def _on_global_batch(loss: Any, weight: Any, output: Any, share: Any) -> Any:
    if loss is None or loss.reduction == keras.losses.Reduction.SUM:
        return weight
    mask = mask_of(output)
    if mask is not None:
        share = replicas.share_of_batch(tf.reduce_sum(tf.cast(mask, tf.float32)))
    factor = tf.cast(share * replicas.count(), output.dtype)
    return factor if weight is None else factor * weight
