"""The losses to try, and what to try them on."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tfkd.losses import (
    AttentionTransfer,
    BoundedRegression,
    DecoupledDistillation,
    ExpectedErrorLoss,
    FeatureDistillation,
    LogitsDistillation,
    PearsonDistillation,
    RelationalDistillation,
    TransformedTeacherMatching,
)

SCORES = {
    "kl": LogitsDistillation(3.0),
    "crossentropy": LogitsDistillation(3.0, "categorical_crossentropy"),
    "binary": LogitsDistillation(3.0, "binary_crossentropy"),
    "decoupled": DecoupledDistillation(3.0),
    "standardized": LogitsDistillation(3.0, standardize=True),
    "transformed": TransformedTeacherMatching(3.0, weighted=False),
    "weighted": TransformedTeacherMatching(3.0),
    "expected_error": ExpectedErrorLoss(),
}
ELEMENTWISE = {
    **SCORES,
    "feature": FeatureDistillation(),
    "attention": AttentionTransfer("a", "b"),
    "bounded": BoundedRegression(0.5),
}
ALL = {
    **ELEMENTWISE,
    "relational": RelationalDistillation(),
    "pearson": PearsonDistillation(3.0),
}


def inputs(name, seed=0, count=5, scale=2.0):
    rng = np.random.default_rng(seed)
    shape = (count, 3, 2) if name == "attention" else (count, 4)
    teacher, student = (np.float32(scale * rng.normal(size=shape)) for _ in range(2))
    if name in ("decoupled", "expected_error"):
        return teacher, student, rng.integers(0, 4, count)
    return teacher, student, np.float32(rng.normal(size=(count, 4)))


def masked(values, mask):
    tensor = tf.constant(values)
    tensor._keras_mask = tf.constant(mask)
    return tensor


def value(loss, teacher, student, **kwargs):
    return float(loss.compute_loss(tf.constant(teacher), tf.convert_to_tensor(student), **kwargs))


def gradient(loss, teacher, student, mask=None, **kwargs):
    student = tf.constant(student)
    with tf.GradientTape() as tape:
        tape.watch(student)
        if mask is not None:
            student._keras_mask = tf.constant(mask)
        result = loss.compute_loss(tf.constant(teacher), student, **kwargs)
    return tape.gradient(result, student).numpy()
