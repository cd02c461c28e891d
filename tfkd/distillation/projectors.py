"""The trained map between a student's features and a teacher's."""

from __future__ import annotations

from typing import Any

import tf_keras as keras

from tfkd.losses.features import common_size, resize_to


@keras.saving.register_keras_serializable(package="tfkd")
class Projector(keras.layers.Layer):
    """Brings student features to the teacher's width, and both to one size.

    Width: a linear map of the channels (a 1×1 convolution, for features of any
    rank), made only where widths differ unless `mode` is "always". Size: the
    larger of the two is brought down to the smaller. Arithmetic is in float32.

    Args:
        mode: "auto" or "always".
        layer: a Keras layer to use in place of the linear map, or None.
    """

    def __init__(self, mode: str = "auto", layer: Any = None, **kwargs: Any):
        super().__init__(dtype="float32", **kwargs)
        self.supports_masking = True
        self.mode = mode
        self.layer = layer
        self.shapes: list[list[int | None]] | None = None

    def build(self, input_shape):
        """Makes the map for [teacher shape, student shape], batch axis included."""
        teacher, student = (list(shape) for shape in input_shape)
        if len(teacher) != len(student):
            raise ValueError(
                "features of teacher and student must have one rank to be compared: the "
                f"teacher's shape is {tuple(teacher)}, the student's {tuple(student)}. Name "
                "layers of one kind, both before or both after pooling."
            )
        if self.layer is None and (self.mode == "always" or teacher[-1] != student[-1]):
            self.layer = keras.layers.Dense(teacher[-1], dtype="float32", name="linear")
        if self.layer is not None and not self.layer.built:
            self.layer.build(student)
        # Past Keras's tracking: shapes are no state of a checkpoint.
        object.__setattr__(self, "shapes", [teacher, student])
        super().build(input_shape)

    def compute_mask(self, inputs, mask=None):
        """None: whether a mask still fits is for the caller to say."""
        return None

    def call(self, inputs):
        """[teacher features, student features] → both in one shape."""
        teacher, student = inputs
        if len(teacher.shape) > 2 and teacher.shape[1:-1] != student.shape[1:-1]:
            size = common_size(teacher, student)
            teacher, student = resize_to(teacher, size), resize_to(student, size)
        return teacher, student if self.layer is None else self.layer(student)
