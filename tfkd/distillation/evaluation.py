"""Compiles a student for `evaluate` alone, with the loss and the metrics of its Distiller."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import tf_keras as keras

from tfkd.losses.configs import fresh
from tfkd.losses.joint import JointLoss


class NoOptimizer:
    """In place of an optimizer, in a model that is compiled for `evaluate` alone.

    It is false, so Keras saves neither it nor the loss and metrics with the model.
    """

    def __bool__(self) -> bool:
        return False

    def minimize(self, *args: Any, **kwargs: Any) -> None:
        """Raises RuntimeError: the model is not compiled for training."""
        raise RuntimeError(
            "the student is compiled for `evaluate` alone, with the loss and metrics of its "
            "Distiller. To train it without its teacher call student.compile(optimizer, loss)."
        )


def is_for_evaluation(student: keras.Model) -> bool:
    """Whether a student was compiled by `compile_student`, and not by the user since."""
    return isinstance(getattr(student, "optimizer", None), NoOptimizer)


def compile_student(
    student: keras.Model, loss: Any, metrics: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """Compiles the student for `evaluate`, unless the user has compiled it.

    A student whose class has a `compile` or `test_step` of its own, such as a detector of
    keras-cv, is left alone; so is one whose metrics can't be made anew, since metrics hold the
    sums of an epoch and can't be shared.

    Args:
        student: the Distiller's student.
        loss, metrics, args, kwargs: as given to the Distiller's `compile`.
    """
    own = any(
        getattr(type(student), name) is not getattr(keras.Model, name)
        for name in ("compile", "test_step", "compute_loss", "compute_metrics")
    )
    compiled = getattr(student, "optimizer", None) is not None
    if own or (compiled and not is_for_evaluation(student)):
        return
    given = inspect.signature(keras.Model.compile).bind(
        student, None, loss, metrics, *args, **kwargs
    )
    options = ("loss_weights", "weighted_metrics", "run_eagerly")
    chosen = {name: given.arguments.get(name) for name in options}
    if loss is None and not metrics and not chosen["weighted_metrics"]:
        return  # there is nothing to evaluate
    try:
        metrics, chosen["weighted_metrics"] = fresh(metrics), fresh(chosen["weighted_metrics"])
    except Exception:  # a user's metric without a config that makes it anew
        return
    # A joint loss holds the means of its parts.
    loss = copy.copy(loss) if isinstance(loss, JointLoss) else loss
    student.compile("sgd", loss, metrics, **chosen)
    student.optimizer = NoOptimizer()
    # Without it Keras writes no loss and no metrics into the files of the student.
    vars(student).pop("_compile_config", None)
