"""Relational knowledge distillation (RKD): distances and angles between a batch's examples."""

from __future__ import annotations

import tensorflow as tf

from tfkd import checks, replicas
from tfkd.losses.base import OneOutput, register, select_like
from tfkd.losses.features import FeatureLoss, check_layer_name, flat, masked_features
from tfkd.losses.weighting import weights_like
from tfkd.types import Structure

_TINY = 1e-12  # a squared distance: distances are at least 1e-6


@register
class RelationalDistillation(OneOutput):
    """Distances and angles between the student's embeddings imitate the teacher's.

    With embeddings e of the batch, h the Huber loss with δ = 1 and w the sample
    weights, the loss is distance_weight · D + angle_weight · A:

        D = Σ_{i≠j} w_i w_j h(d_s(i, j) − d_t(i, j)) / (B (B − 1))
        d(i, j) = ‖e_i − e_j‖ / μ,  μ = the mean of ‖e_i − e_j‖ over pairs i ≠ j
        A = Σ_{i,j,k distinct} w_i w_j w_k h(c_s − c_t) / (B (B − 1) (B − 2))
        c(i, j, k) = cosine of the angle at i between e_j − e_i and e_k − e_i

    The mean μ is weighted by w_i w_j, so an example of weight 0 has no influence on the
    others; doubling all weights multiplies D by 4 and A by 8. The paper uses weights 25
    and 50 with a cross-entropy of weight 1.

    Under a `tf.distribute` strategy the pairs are those of the global batch: the
    embeddings of all replicas are gathered, and each replica returns the loss of the
    global batch.

    Memory: with the gradient, a few float32 arrays of B·B·B angles and of B·B·D
    differences. At B = 256 an array of angles takes 64 MiB, and one of differences 16 MiB
    with D = 64. Choose a layer after pooling rather than a feature map.

    Args:
        distance_weight: weight of D, at least 0; 0: not computed.
        angle_weight: weight of A, at least 0; 0: not computed. A is 0 for fewer
            than 3 examples.
        teacher_layer_name: layer of the teacher; a path such as
            "backbone/pool" enters nested models. None: the final output.
        student_layer_name: the same for the student. Outputs of any rank are
            flattened to (B, D); D may differ between the two.
        output: without layer names, which of several final outputs, by name
            (dict) or index (list).
        name: name of the term in logs.

    Raises:
        TypeError: if a weight is not a number, or a layer name not a string.
        ValueError: for a negative weight, two weights of 0, or an `output`
            together with a layer name.

    Reference:
        Park et al. 2019, https://arxiv.org/abs/1904.05068

    Example:
        >>> import tensorflow as tf
        >>> import tfkd
        >>> loss = tfkd.losses.RelationalDistillation()
        >>> teacher = tf.constant([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> turned_and_larger = tf.constant([[0.0, 0.0], [0.0, 3.0], [-3.0, 0.0]])
        >>> round(float(loss.compute_loss(teacher, turned_and_larger)), 6)
        0.0
    """

    arguments = ("distance_weight", "angle_weight", *FeatureLoss.arguments, "output")

    def __init__(
        self,
        distance_weight: float = 1.0,
        angle_weight: float = 2.0,
        teacher_layer_name: str | None = None,
        student_layer_name: str | None = None,
        output: str | int | None = None,
        name: str | None = None,
    ):
        super().__init__(output, name)
        self.distance_weight = checks.non_negative("distance_weight", distance_weight)
        self.angle_weight = checks.non_negative("angle_weight", angle_weight)
        if distance_weight == angle_weight == 0:
            expected = "distance_weight or angle_weight above 0"
            raise checks.value_error("angle_weight", expected, angle_weight)
        self.teacher_layer_name = check_layer_name("teacher_layer_name", teacher_layer_name)
        self.student_layer_name = check_layer_name("student_layer_name", student_layer_name)
        if output is not None and (teacher_layer_name or student_layer_name):
            fix = "It selects a final output."
            raise checks.value_error("output", "None where layers are named", output, fix)

    def compute_loss(self, teacher_outputs, student_outputs, **kwargs):
        """The loss over the global batch: a scalar tensor."""
        chosen = self._select(student_outputs)
        teacher, student = _embeddings(self._select(teacher_outputs)), _embeddings(chosen)
        weight = self._weights(kwargs.get("sample_weight"), chosen)
        teacher, student, weight = replicas.gathered([tf.stop_gradient(teacher), student, weight])
        loss = tf.constant(0.0)
        teacher, student = _differences(teacher), _differences(student)
        pairs = tf.linalg.set_diag(weight[:, None] * weight[None, :], tf.zeros_like(weight))
        if self.distance_weight:
            loss += self.distance_weight * distance_loss(teacher, student, pairs)
        if self.angle_weight:
            loss += self.angle_weight * angle_loss(teacher, student, pairs, weight)
        return loss

    def _weights(self, sample_weight: Structure | None, student: tf.Tensor) -> tf.Tensor:
        """One sample weight per example, (B,); ones if none are given."""
        values = tf.ones([tf.shape(student)[0]])
        given = tf.nest.flatten(sample_weight)
        one = given[0] if len(given) == 1 else select_like(sample_weight, self.output, self.name)
        return values if one is None else values * weights_like(values, one, self, student)


def distance_loss(teacher: tf.Tensor, student: tf.Tensor, pairs: tf.Tensor) -> tf.Tensor:
    """D of `RelationalDistillation`, from differences (B, B, D) and pair weights (B, B)."""
    teacher, student = _over_mean(_lengths(teacher), pairs), _over_mean(_lengths(student), pairs)
    count = tf.cast(tf.shape(pairs)[0], tf.float32)
    total = tf.reduce_sum(pairs * _huber(student - teacher))
    return tf.math.divide_no_nan(total, count * (count - 1.0))


def angle_loss(
    teacher: tf.Tensor, student: tf.Tensor, pairs: tf.Tensor, weight: tf.Tensor
) -> tf.Tensor:
    """A of `RelationalDistillation`, from the same and the weights (B,)."""
    error = _huber(_cosines(student) - _cosines(teacher))
    count = tf.shape(weight)[0]
    # `pairs` is 0 where j = k; where i = j or i = k both cosines are 0 already.
    error, pairs = tf.reshape(error, [count, count * count]), tf.reshape(pairs, [count * count])
    per_vertex = tf.linalg.matvec(error, pairs)
    examples = tf.cast(count, tf.float32)
    triples = examples * (examples - 1.0) * (examples - 2.0)
    return tf.math.divide_no_nan(tf.reduce_sum(weight * per_vertex), triples)


def _differences(embeddings: tf.Tensor) -> tf.Tensor:
    """e_j − e_i at [i, j], (B, B, D); distances from a Gram matrix would lose digits."""
    return embeddings[None, :] - embeddings[:, None]


def _lengths(differences: tf.Tensor) -> tf.Tensor:
    # The constant stands inside the root, so that its gradient is finite at distance 0.
    return tf.sqrt(tf.reduce_sum(tf.square(differences), -1) + _TINY)


def _cosines(differences: tf.Tensor) -> tf.Tensor:
    """Cosine at [i, j, k] of the angle at i between j and k, (B, B, B)."""
    unit = differences / _lengths(differences)[..., None]
    return tf.matmul(unit, unit, transpose_b=True)


def _over_mean(lengths: tf.Tensor, pairs: tf.Tensor) -> tf.Tensor:
    mean = tf.math.divide_no_nan(tf.reduce_sum(pairs * lengths), tf.reduce_sum(pairs))
    return tf.math.divide_no_nan(lengths, mean)


def _huber(error: tf.Tensor) -> tf.Tensor:
    """Huber loss with δ = 1: x²/2 up to |x| = 1, |x| − 1/2 beyond."""
    size = tf.abs(error)
    near = tf.minimum(size, 1.0)
    return near * (size - 0.5 * near)


def _embeddings(features: tf.Tensor) -> tf.Tensor:
    """Flattens features (B, ...) to embeddings (B, D) in float32."""
    return flat(masked_features(features))
