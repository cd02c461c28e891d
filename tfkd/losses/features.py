"""Feature distillation: hints (FitNets) and attention transfer between intermediate layers."""

from __future__ import annotations

from typing import TypeAlias

import tensorflow as tf
import tf_keras as keras

from tfkd import checks
from tfkd.losses.base import Elements, ElementwiseLoss, mask_of, register
from tfkd.losses.resizing import common_size, resize_to
from tfkd.losses.wrapped import Losses, apply_loss, each_output, is_sum, per_output, resolve_loss

LayerName: TypeAlias = "str | keras.layers.Layer | None"


def check_layer_name(name: str, value: LayerName) -> str | None:
    """Accepts a layer's name, a path "model/layer", a layer for its name, or None."""
    if isinstance(value, keras.layers.Layer):
        return value.name
    if value is not None and (not isinstance(value, str) or not value):
        expected = "the name of a layer, a path such as 'backbone/block3', or None"
        raise checks.type_error(name, expected, value)
    return value


class FeatureLoss(ElementwiseLoss):
    """Base class of losses between two layers, which it holds by name."""

    arguments: tuple[str, ...] = ("teacher_layer_name", "student_layer_name")

    def __init__(
        self, teacher_layer_name: LayerName, student_layer_name: LayerName, name: str | None = None
    ):
        super().__init__(name)
        self.teacher_layer_name = check_layer_name("teacher_layer_name", teacher_layer_name)
        self.student_layer_name = check_layer_name("student_layer_name", student_layer_name)


@register
class FeatureDistillation(FeatureLoss):
    """Hints: a layer of the student imitates a layer of the teacher.

    Inside a `tfkd.Distiller`, features that differ in width pass through a trained
    linear projection of the student's channels (a 1×1 convolution), and features that
    differ in spatial size are resized to the smaller one. The projector is trained with
    the student but belongs to the Distiller: the exported student does not contain it.

    Args:
        loss: "mse" by default; a string, function or instance, or a structure of them
            with None for outputs without a loss (final outputs only). It is called as
            loss(teacher, student); its values are averaged over examples and positions
            here, or summed for an instance with reduction="sum".
        teacher_layer_name: layer of the teacher; a path such as
            "backbone/block3" enters nested models. None: the final output.
        student_layer_name: the same for the student.
        projector: "auto" (a projector where widths differ), "always" (also at equal
            width, as in Chen et al. 2017), None (never: shapes must agree), or a Keras
            layer from the student's features to the teacher's width.
        name: name of the term in logs.

    Raises:
        ValueError: for an unknown loss or projector, or if every loss is None.

    Reference:
        Romero et al. 2015 (FitNets), https://arxiv.org/abs/1412.6550

    Example:
        >>> import tensorflow as tf
        >>> import tfkd
        >>> loss = tfkd.losses.FeatureDistillation()
        >>> float(loss.compute_loss(tf.constant([[1.0, 2.0]]), tf.constant([[1.0, 4.0]])))
        2.0
    """

    arguments = (*FeatureLoss.arguments, "loss", "projector")

    def __init__(
        self,
        loss: Losses = "mse",
        teacher_layer_name: LayerName = None,
        student_layer_name: LayerName = None,
        projector: str | keras.layers.Layer | None = "auto",
        name: str | None = None,
    ):
        super().__init__(teacher_layer_name, student_layer_name, name)
        self.loss = resolve_loss(loss)
        if not isinstance(projector, keras.layers.Layer):
            try:
                checks.one_of("projector", projector, ("auto", "always", None))
            except ValueError as error:
                raise ValueError(f"{error} Or pass a Keras layer.") from None
        self.projector = projector

    def validate_outputs(self, teacher_outputs, student_outputs):
        """Raises ValueError unless both outputs and the losses have the same structure."""
        super().validate_outputs(teacher_outputs, student_outputs)
        per_output(self.loss, student_outputs)

    def elements(self, teacher_outputs, student_outputs, y=None, sample_weight=None, step=None):
        """The loss at every position, (B, ...)."""
        super().validate_outputs(teacher_outputs, student_outputs)
        return each_output(self.loss, teacher_outputs, student_outputs, self._one)

    def _one(self, loss, teacher, student):
        mask = mask_of(student)
        teacher = tf.stop_gradient(tf.cast(teacher, tf.float32))
        student = tf.cast(student, tf.float32)
        if not teacher.shape.is_compatible_with(student.shape):
            raise ValueError(
                f"{self.name}: features must have the same shape, the teacher's is "
                f"{teacher.shape}, the student's {student.shape}. Inside a Distiller leave "
                "projector='auto', which maps the student's features to the teacher's shape."
            )
        return Elements(apply_loss(loss, teacher, student), mask, is_sum(loss))


@register
class AttentionTransfer(FeatureLoss):
    """Attention transfer: the student imitates the teacher's spatial attention maps.

    A layer's attention map is Q = Σ_c a_c², one number per position, over the channels c.
    The loss of one example is the squared L2 distance between the two maps, each divided
    by its L2 norm:

        Σ_positions (Q_t / ‖Q_t‖ − Q_s / ‖Q_s‖)²

    a sum over positions, between 0 and 2, and then a mean over examples. (For an equal
    effect, implementations that average over positions need a weight that is larger by
    the number of positions.) The numbers of channels may differ, so there is no projector;
    features of different sizes are first average-pooled to the smaller size.

    Args:
        teacher_layer_name: layer of the teacher whose output is (B, T, C) or
            (B, H, W, C); a path such as "backbone/block3" enters nested models.
            None: the final output.
        student_layer_name: the same for the student.
        name: name of the term in logs.

    Positions that the Keras mask of the layer's output excludes are 0 in both maps.

    Raises:
        TypeError: if a layer name is not a string.
        ValueError: when called, for features without positions, or of different rank.

    Reference:
        Zagoruyko and Komodakis 2017, https://arxiv.org/abs/1612.03928

    Example:
        >>> import tensorflow as tf
        >>> import tfkd
        >>> loss = tfkd.losses.AttentionTransfer("stage3", "stage2")
        >>> here, there = tf.constant([[[1.0], [0.0]]]), tf.constant([[[0.0], [1.0]]])
        >>> float(loss.compute_loss(here, there)), float(loss.compute_loss(here, 3.0 * here))
        (2.0, 0.0)
    """

    def elements(self, teacher_outputs, student_outputs, y=None, sample_weight=None, step=None):
        """One loss per example, (B,)."""
        self.validate_outputs(teacher_outputs, student_outputs)
        for side, features in (("teacher", teacher_outputs), ("student", student_outputs)):
            if isinstance(features, (dict, list, tuple)) or len(features.shape) not in (3, 4):
                expected = "a layer whose output has positions, (B, T, C) or (B, H, W, C)"
                fix = "Name a layer before pooling or flattening."
                raise checks.value_error(f"{side}_layer_name", expected, features, fix)
        mask = mask_of(student_outputs)
        teacher = tf.stop_gradient(masked_features(teacher_outputs))
        student = masked_features(student_outputs)
        size = common_size(teacher, student)
        # The student's mask also applies to a teacher whose features have none.
        if mask is not None and tuple(teacher.shape[1:-1]) == tuple(student.shape[1:-1]):
            teacher *= tf.cast(mask, tf.float32)[..., None]
        distance = attention_map(resize_to(student, size)) - attention_map(resize_to(teacher, size))
        # An example whose positions are all masked has no map, so it does not count.
        kept = None if mask is None else tf.reduce_any(flat(tf.cast(mask, tf.bool)), -1)
        return [Elements(tf.reduce_sum(tf.square(distance), -1), kept)]


def masked_features(features: tf.Tensor) -> tf.Tensor:
    """Returns features in float32, 0 at positions that the layer's Keras mask excludes."""
    mask = mask_of(features)
    features = tf.cast(features, tf.float32)
    if mask is None:
        return features
    mask = tf.cast(mask, tf.bool)
    while len(mask.shape) < len(features.shape):
        mask = mask[..., None]
    return tf.where(mask, features, 0.0)


def attention_map(features: tf.Tensor) -> tf.Tensor:
    """(B, *spatial, C) → (B, positions): Σ_c a², divided by its L2 norm."""
    energy = flat(tf.reduce_sum(tf.square(features), -1))
    # The constant stands inside the root, whose gradient at a map of zeros is then finite.
    return energy * tf.math.rsqrt(tf.reduce_sum(tf.square(energy), -1, keepdims=True) + 1e-20)


def flat(values: tf.Tensor) -> tf.Tensor:
    """Flattens (B, ...) to (B, N), with a static N where the shape is known."""
    rest = values.shape[1:]
    size = rest.num_elements() if rest.is_fully_defined() else tf.reduce_prod(tf.shape(values)[1:])
    return tf.reshape(values, [tf.shape(values)[0], size])
