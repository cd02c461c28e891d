"""Saving and loading of Distillers: `.keras` files, weight files and checkpoints.

A `.keras` file holds both models, so that training can be resumed from it; the
teacher is saved without its optimizer and compile settings. Weight files and
checkpoints hold only what training changes, which excludes the frozen teacher.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import tf_keras as keras

from tfkd import checks, schedules
from tfkd.networks import configs, layer_state
from tfkd.networks.layer_parts import flat_layers
from tfkd.teachers.forward import as_list
from tfkd.teachers.precomputed import PrecomputedTeacher


class Saving(keras.Model):
    """The part of the Distiller that saves and loads."""

    _hide_teacher = False

    def save(
        self,
        filepath: str | os.PathLike[str],
        overwrite: bool = True,
        save_format: str | None = None,
        **kwargs: Any,
    ) -> None:
        """`keras.Model.save` to a `.keras` file, without the teacher's optimizer.

        Raises:
            ValueError: if the file could not be loaded again: a model is quantized, a
                teacher is not a tf_keras model, or the path does not end in `.keras`.
        """
        self._check_whole_file(filepath, save_format)
        with uncompiled(self._compiled_for_nothing()):
            super().save(filepath, overwrite, save_format, **kwargs)

    def _compiled_for_nothing(self) -> list[keras.Model]:
        """Models whose optimizers are not saved: training resumes with the Distiller's own."""
        teachers = [model for one in as_list(self.teacher) for model in _models_in(one)]
        return teachers + [model for model in _models_in(self.student) if _is_stale(model)]

    def check_checkpoints(self, callbacks: Any) -> None:
        """Checks, before training, that the files of checkpoint callbacks can be loaded.

        Args:
            callbacks: those of `fit`.

        Raises:
            ValueError: as `save`, for a ModelCheckpoint without `save_weights_only=True`.
        """
        filepath = checks.whole_model_path(callbacks)
        if filepath is not None:
            self._check_whole_file(filepath)
        filepath = checks.whole_model_path(callbacks, of_student=True)
        if filepath is not None:
            self._check_file_of_student(os.fspath(filepath))

    def _check_whole_file(self, filepath: Any, save_format: Any = None) -> None:
        path = os.fspath(filepath)
        if not path.endswith(".keras") or save_format not in (None, "keras"):
            raise ValueError(
                f"`filepath`: expected a path that ends in .keras, received {path!r} for a whole "
                "Distiller: loaded from another format it would not distil. Save to .keras, the "
                "weights alone (save_weights, or save_weights_only=True), or distiller.student."
            )
        self._check_models(path)
        for model in (self.student, *as_list(self.teacher)):
            configs.check_configs("filepath", model)
            _check_learned(model, path)

    def _check_file_of_student(self, path: str) -> None:
        if is_quantized(self.student):
            raise ValueError(
                f"`filepath`: expected weights alone, received {path!r} for the quantized student "
                f"{self.student.name!r}, which Keras can't load again. Use save_weights_only=True "
                "for checkpoints, and tfkd.quantization.save(distiller.student, path)."
            )
        if path.endswith((".keras", ".h5", ".hdf5")):
            configs.check_configs("filepath", self.student)
        if path.endswith(".keras"):
            _check_learned(self.student, path)

    def _check_models(self, filepath: str) -> None:
        sides = [("student", self.student), *(("teacher", one) for one in as_list(self.teacher))]
        for side, model in sides:
            if isinstance(model, keras.Model) and is_quantized(model):
                raise ValueError(
                    f"`filepath`: expected weights alone, received {filepath!r} for a "
                    f"Distiller whose {side} {model.name!r} is quantized, which Keras can't load "
                    "again. Use save_weights_only=True for checkpoints (or save_weights), and "
                    "tfkd.quantization.save(distiller.student, path) and load(path) for the "
                    "quantized model."
                )
            if not isinstance(model, (keras.Model, PrecomputedTeacher)):
                expected = "a tf_keras model or a TeacherCache, to be saved with the Distiller"
                fix = "Save distiller.student, or the weights by save_weights, instead."
                raise checks.value_error(side, expected, model, fix)

    def save_weights(self, *args: Any, **kwargs: Any) -> Any:
        """`keras.Model.save_weights`, without the frozen teacher."""
        with self._without_teacher():
            return super().save_weights(*args, **kwargs)

    def load_weights(self, *args: Any, **kwargs: Any) -> Any:
        """`keras.Model.load_weights` of a file written by `save_weights`."""
        with self._without_teacher():
            return super().load_weights(*args, **kwargs)

    @contextlib.contextmanager
    def _without_teacher(self):
        """Hides the teacher from `dir`, by which Keras finds the objects to save."""
        self._hide_teacher = True
        try:
            yield
        finally:
            self._hide_teacher = False

    def __dir__(self):
        hidden = {"teacher", "_teacher"} if self._hide_teacher else ()
        return [name for name in super().__dir__() if name not in hidden]

    def get_config(self) -> dict[str, Any]:
        """Both models, the losses and their weights, as JSON values.

        Raises:
            ValueError: if a model is quantized, or a teacher is not a tf_keras model.
        """
        self._check_models(self.name)
        serialize = keras.saving.serialize_keras_object
        with uncompiled(self._compiled_for_nothing()):
            written = [serialize(one) for one in as_list(self.teacher)]
            student = serialize(self.student)
        weights = [schedules.serialize(weight) for weight in self.distillation_loss_weights]
        return {
            "name": self.name,
            "teacher": written if isinstance(self.teacher, (list, tuple)) else written[0],
            "student": student,
            "distillation_losses": [serialize(loss) for loss in self.distillation_losses],
            "distillation_loss_weights": weights,
            "student_loss_weight": schedules.serialize(self.student_loss_weight),
            "weigh_distillation": self.weigh_distillation,
        }

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None
    ) -> Saving:
        """Makes the Distiller that `get_config` described."""

        def read(item):
            return keras.saving.deserialize_keras_object(item, custom_objects=custom_objects)

        config = dict(config)
        many = isinstance(config["teacher"], list)
        items = config["teacher"] if many else [config["teacher"]]
        # The teacher's optimizer is not needed: do not restore its compile settings.
        teachers = [read({**item, "compile_config": None}) for item in items]
        config["teacher"] = teachers if many else teachers[0]
        config["student"] = read(config["student"])
        config["distillation_losses"] = [read(item) for item in config["distillation_losses"]]
        weights = config["distillation_loss_weights"]
        config["distillation_loss_weights"] = [schedules.deserialize(item) for item in weights]
        config["student_loss_weight"] = schedules.deserialize(config["student_loss_weight"])
        return cls(**config)

    def get_build_config(self) -> dict[str, Any]:
        """Input shapes of the projectors."""
        return {"projectors": [projector.shapes for projector in self.projectors]}

    def build_from_config(self, config: dict[str, Any]) -> None:
        """Creates the projectors' weights before the weights are loaded."""
        for projector, shapes in zip(self.projectors, config["projectors"], strict=True):
            if shapes is not None and not projector.built:
                projector.build(shapes)

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compiles as the saved Distiller was, and creates the optimizer's variables.

        Keras does not do this for models that override `compile`.
        """
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.built and isinstance(self.optimizer, keras.optimizers.Optimizer):
            self.optimizer.build(self.trainable_variables)


def _check_learned(model: Any, path: str) -> None:
    """Raises ValueError if Keras would read a layer of a file without what it has learned."""
    lost = layer_state.lost_in_keras_file(model) if isinstance(model, keras.Model) else None
    if lost is not None:
        raise ValueError(
            f"`filepath`: expected weights alone, received {path!r} for a Distiller with "
            f"{lost.name!r} ({type(lost).__name__}) in {model.name!r}: Keras would read it "
            "without what it has learned. Use save_weights (or save_weights_only=True). "
            "Or give a Discretization its bin_boundaries, and a layer of your own a "
            "load_own_variables that calls finalize_state."
        )


def is_quantized(model: keras.Model) -> bool:
    """Whether a model contains quantization layers of tfmot or tfkd."""
    marks = ("check_calibrated", "quantize_config", "quantizer")
    return any(hasattr(layer, mark) for layer in flat_layers(model) for mark in marks)


def _models_in(model: Any) -> list[keras.Model]:
    """A model and those nested in it; [] for anything but a Keras model."""
    layers = flat_layers(model) if isinstance(model, keras.Model) else ()
    return [layer for layer in layers if isinstance(layer, keras.Model)]


def _is_stale(model: keras.Model) -> bool:
    """Whether the optimizer was built for other variables, which Keras cannot load again."""
    optimizer: Any = getattr(model, "optimizer", None)
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    known: Any = getattr(optimizer, "_index_dict", None)
    wanted = model.trainable_variables if known else ()
    return set(known or ()) != {optimizer._var_key(variable) for variable in wanted}


@contextlib.contextmanager
def uncompiled(models: list[keras.Model]) -> Iterator[None]:
    """Temporarily removes the optimizers of models, so that Keras does not save them."""
    names = ("optimizer", "_is_compiled")
    kept = [(vars(m), {n: vars(m)[n] for n in names if n in vars(m)}) for m in models]
    try:
        for attributes, _ in kept:
            attributes["optimizer"] = None  # SavedModels read it
            attributes["_is_compiled"] = False
        yield
    finally:
        for attributes, values in kept:
            attributes.update(values)
