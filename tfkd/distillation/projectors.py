"""Projectors: trained regressors from student features to teacher features (hints)."""

from __future__ import annotations

from typing import Any

import tf_keras as keras

from tfkd.losses.features import common_size, resize_to


@keras.saving.register_keras_serializable(package="tfkd")
class Projector(keras.layers.Layer):
    """Projects student features to the teacher's channels, and resizes both to one size.

    Channels: a linear map (a 1×1 convolution, for features of any rank), created only
    if the channels differ unless `mode` is "always". Size: the larger of the two is
    reduced to the smaller. Computes in float32.

    Reference: Romero et al. 2015, "FitNets", https://arxiv.org/abs/1412.6550

    Args:
        mode: "auto" or "always".
        layer: a Keras layer to use in place of the linear map, or None.
    """

    def __init__(self, mode: str = "auto", layer: keras.layers.Layer | None = None, **kwargs: Any):
        super().__init__(dtype="float32", **kwargs)
        self.supports_masking = True
        self.mode = mode
        self.layer = layer
        self.shapes: list[list[int | None]] | None = None

    def build(self, input_shape):
        """Creates the weights for [teacher shape, student shape], batch axis included."""
        teacher, student = (list(shape) for shape in input_shape)
        if len(teacher) != len(student):
            raise ValueError(
                "features of teacher and student must have the same rank: the "
                f"teacher's shape is {tuple(teacher)}, the student's {tuple(student)}. Name "
                "layers of one kind, both before or both after pooling."
            )
        if self.layer is None and (self.mode == "always" or teacher[-1] != student[-1]):
            self.layer = keras.layers.Dense(teacher[-1], dtype="float32", name="linear")
        if self.layer is not None and not self.layer.built:
            self.layer.build(student)
        # Bypasses Keras's tracking: shapes are not part of a checkpoint.
        object.__setattr__(self, "shapes", [teacher, student])
        super().build(input_shape)

    def compute_mask(self, inputs, mask=None):
        """None: the caller decides whether the mask still applies to the resized features."""
        return None

    def call(self, inputs):
        """[teacher features, student features] → both with the same shape."""
        teacher, student = inputs
        if len(teacher.shape) > 2 and teacher.shape[1:-1] != student.shape[1:-1]:
            size = common_size(teacher, student)
            teacher, student = resize_to(teacher, size), resize_to(student, size)
        return teacher, student if self.layer is None else self.layer(student)
