"""What a Distiller writes to files and reads back.

A `.keras` file holds both models: it can be loaded anywhere and goes on
training. Weights files and checkpoints hold what training changes, so the
frozen teacher is left out of them.
"""

from __future__ import annotations

import contextlib
from typing import Any

import tf_keras as keras

from tfkd import checks, schedules
from tfkd.teachers.forward import as_list
from tfkd.teachers.riding import RidingTeacher


class Saving(keras.Model):
    """The part of the Distiller that saves and loads."""

    _hide_teacher = False

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
        hidden = {"teacher", "_teacher"} if self._hide_teacher else ()
        return [name for name in super().__dir__() if name not in hidden]

    def get_config(self) -> dict[str, Any]:
        """Both models, the losses and the weights, as JSON.

        Raises:
            ValueError: if a teacher is not a tf_keras model.
        """
        for one in as_list(self.teacher):
            if not isinstance(one, (keras.Model, RidingTeacher)):
                raise checks.value_error(
                    "teacher",
                    "a tf_keras model or a TeacherCache, to be saved with the Distiller",
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
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Any:
        """Makes the Distiller that `get_config` described."""

        def read(item):
            return keras.saving.deserialize_keras_object(item, custom_objects=custom_objects)

        config = dict(config)
        many = isinstance(config["teacher"], list)
        teachers = [read(item) for item in (config["teacher"] if many else [config["teacher"]])]
        config["teacher"] = teachers if many else teachers[0]
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

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compiles as the saved Distiller was, with the optimizer's variables made.

        Keras leaves this out for a model with a `compile` of its own.
        """
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.built and isinstance(self.optimizer, keras.optimizers.Optimizer):
            self.optimizer.build(self.trainable_variables)
