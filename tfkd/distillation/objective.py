"""The objective of a Distiller: the losses of one step, their weights, and the trackers.

On several replicas each computes its share, so that the sum is the mean over the global batch.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf
import tf_keras as keras

from tfkd import replicas, schedules
from tfkd.distillation import output_kinds, pairing, targets, validation
from tfkd.distillation.balancing import is_one, is_zero
from tfkd.distillation.terms import Term, is_number, loss_on_labels, shared_by, sigmoids
from tfkd.teachers.class_scores import losses_of
from tfkd.teachers.features import FINAL
from tfkd.teachers.forward import as_list
from tfkd.teachers.precomputed import split
from tfkd.types import Structure


class Objective(keras.Model):
    """The part of the Distiller that computes its losses."""

    def compute_loss(
        self,
        x: Structure | None = None,
        y: Structure | None = None,
        y_pred: Structure | None = None,
        sample_weight: Structure | None = None,
        training: bool = True,
    ) -> tf.Tensor:
        """Runs both models on x and returns the loss that a step would minimize.

        `y_pred` is ignored and only there for Keras's signature: losses on features need
        the outputs of the student's layers, so the student runs here.
        """
        x, y, sample_weight = (_tensors(value) for value in (x, y, sample_weight))
        x, stored = split(x)
        outputs = self._student_feature_extractor(x, training=training)
        return self._objective(x, y, sample_weight, outputs, self._teach(x, stored))

    def _teach(self, x: Any, stored: Any) -> Any:
        """The teachers' outputs, or None if their weight is 0.

        Args:
            x: inputs of the student.
            stored: outputs of a cached teacher, or None.
        """
        if is_one(self.student_loss_weight):
            return None
        if self._precomputed_teacher is None:
            pairing.check_input_order(as_list(self._teacher), self.student, x)
            return self._teacher_feature_extractor(x)
        if stored is None:
            validation.check_precomputed(self._precomputed_teacher, x)
        return self._teacher_feature_extractor(stored)

    def _objective(self, x, y, sample_weight, outputs, taught):
        """This replica's share of the loss; the trackers are updated with the local mean."""
        output_kinds.decide(self, x, in_step=True)
        size = tf.cast(tf.shape(tf.nest.flatten(outputs[FINAL])[0])[0], tf.float32)
        share = replicas.share_of_batch(size)
        step = self._step()

        shared = shared_by(self.distillation_losses, self.compiled_loss, taught)
        student_loss = self._student_loss(y, sample_weight, outputs[FINAL], share, shared)
        distillation_loss = tf.constant(0.0)
        if taught is not None:
            known = self._known(y, sample_weight, outputs[FINAL], step, shared)
            distillation_loss = self._distillation(taught, outputs, known, share, size)
        total = distillation_loss
        if taught is None and self._precomputed_teacher is not None:
            total = student_loss
        elif not is_zero(self.student_loss_weight):
            weight = schedules.value_at(self.student_loss_weight, step)
            total = weight * student_loss + (1.0 - weight) * distillation_loss
        loss = total
        if self.losses:
            # A kernel's penalty is the same on all replicas, that of activities a mean over
            # the local batch: weighted by `share`, both sum to the value of one replica.
            loss += tf.add_n([tf.cast(value, tf.float32) for value in self.losses]) * share
        for tracker, value in (
            (self.student_loss_tracker, student_loss),
            (self.distillation_loss_tracker, distillation_loss),
            (self.total_loss_tracker, total),
            (self._loss_tracker, loss),
        ):
            tracker.update_state(tf.math.divide_no_nan(value, share), sample_weight=size)
        return loss

    def _step(self) -> tf.Tensor:
        """The optimizer's step count, the argument of every schedule."""
        if getattr(self, "optimizer", None) is None:
            return tf.constant(0, tf.int64)
        return tf.convert_to_tensor(self.optimizer.iterations)

    def _student_loss(self, y, sample_weight, y_pred, share, shared):
        container = self.compiled_loss
        if y is not None and container is not None and container._user_losses is not None:
            targets.check(y, None, container._user_losses)
            if not is_zero(self.student_loss_weight):
                self._check_class_numbers(y, y_pred)
            output_kinds.mark(self, y_pred)
            y = self._ranks(y, y_pred, container._user_losses)
            return loss_on_labels(container, y, y_pred, sample_weight, share, shared)
        if is_zero(self.student_loss_weight):
            return tf.constant(0.0)
        raise ValueError(
            "`y`: expected targets, since student_loss_weight is "
            f"{self.student_loss_weight!r}, received None. Pass y (or a Dataset of (x, y)), or "
            "student_loss_weight=0 to the Distiller to distil without labels."
        )

    def _check_class_numbers(self, y, y_pred):
        outputs = tf.nest.flatten(y_pred)
        labels = self.compiled_loss._conform_to_outputs(y_pred, y) if tf.nest.is_nested(y) else y
        labels = tf.nest.flatten(labels)
        losses = losses_of(self, self.student, len(outputs))
        if len(labels) == len(outputs):
            for one, output, loss in zip(labels, outputs, losses, strict=True):
                targets.check_class_numbers(one, output.shape, loss)

    def _known(self, y, sample_weight, y_pred, step, shared):
        """Optional arguments of distillation losses, in the structure of the student's outputs."""
        conform = self.compiled_loss._conform_to_outputs
        y = conform(y_pred, y) if tf.nest.is_nested(y) else y
        if self.weigh_distillation is False:
            sample_weight = None
        if tf.nest.is_nested(sample_weight):
            sample_weight = conform(y_pred, sample_weight)
        return {"y": y, "sample_weight": sample_weight, "step": step, "shared": shared}

    def _distillation(self, taught, outputs, known, share, size):
        """This replica's share of Σ wᵢ · KDᵢ."""
        result, agreement_from = tf.constant(0.0), self._agreement_term()
        for index, term in enumerate(self._terms):
            teacher, student = term.pair(*taught, outputs)
            value, parts = term.value(teacher, student, known, share)
            local = tf.math.divide_no_nan(value, share)
            self._term_trackers[index].update_state(local, sample_weight=size)
            if term is agreement_from:
                for same, mask in agreement_from.agreement(teacher, student, parts):
                    self._agreement_tracker.update_state(same, sample_weight=mask)
            weight = schedules.value_at(self.distillation_loss_weights[index], known["step"])
            if self._balance is not None and term.name in self._balance:
                weight = weight * self._balance[term.name]
            result = result + weight * value
        return result

    def _agreement_term(self) -> Term | None:
        """The first term on class scores, from which the agreement is computed."""
        shape = self._student_feature_extractor.static_shape(FINAL)
        term = next((term for term in self._terms if term.on_scores), None)
        if term is None or shape is None:
            return term
        output = tf.TensorSpec(shape)
        return None if is_number(output, *sigmoids(term.loss, output)) else term

    def scheduled_values(self, step: int | None = None) -> dict[str, float]:
        """Values of all scheduled weights (times their factors, if any) and temperatures at a step.

        Args:
            step: the optimizer's step; default: the current one.

        Returns:
            {"student_loss_weight": w, "weight/<loss>": wᵢ, "temperature/<loss>": T}.
        """
        if step is None:
            step = int(self._step())
        values = {"student_loss_weight": self.student_loss_weight}
        for term, weight in zip(self._terms, self.distillation_loss_weights, strict=True):
            values[f"weight/{term.name}"] = weight
            if hasattr(term.loss, "temperature"):
                values[f"temperature/{term.name}"] = term.loss.temperature
        found = {key: float(schedules.value_at(value, step)) for key, value in values.items()}
        for name, factor in self.balance.items():
            found[f"weight/{name}"] *= factor
        return found


def _tensors(values: Any) -> Any:
    """Converts a nested structure of arrays to tensors; None stays None."""
    return tf.nest.map_structure(lambda v: None if v is None else tf.convert_to_tensor(v), values)
