"""Base classes of distillation losses, and their reduction with sample weights and masks.

* A loss that is a mean over examples (or positions) implements `elements`, which
  returns one value per example. The reduction happens in one place, here and in the
  Distiller, with sample weights, masks and the global batch of a strategy.
* A loss on the batch as a whole (relations between examples, or a user's own)
  overrides `compute_loss` and returns a scalar: the mean over the given examples.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Hashable, Iterable
from typing import Any, TypeVar

import tensorflow as tf
import tf_keras as keras

from tfkd import checks, schedules
from tfkd.losses.configs import deserialize, serialize
from tfkd.losses.weighting import Elements, mean_of, weighted_sums
from tfkd.schedules import Value
from tfkd.types import Structure

T = TypeVar("T")


class Shared:
    """Results that the losses of one step share; the first loss that needs one computes it.

    Attributes:
        selection: the `MultiBoxSelection` of the first loss that has one, for the losses
            that have none of their own; None if no loss has one.
        teacher: the teacher's outputs, for losses on the labels that use them.
    """

    def __init__(self, losses: Iterable[object] = (), teacher: Structure | None = None):
        each = [getattr(loss, "selection", None) for loss in losses]
        self.selection = next((one for one in each if one is not None), None)
        self.teacher = teacher
        self._values: dict[Hashable, Any] = {}

    def once(self, owner: Any, compute: Callable[[], T]) -> T:
        """Returns the value of `owner` and of others with its config; the first computes it."""
        try:
            config = [type(owner).__name__, owner.get_config()]
            key = json.dumps(config, sort_keys=True, default=str)
        except ValueError:  # a part of it can't be saved
            key = owner
        if key not in self._values:
            self._values[key] = compute()
        return self._values[key]


def snake_case(name: str) -> str:
    """Turns LogitsDistillation into logits_distillation."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


class DistillationLoss:
    """Base class of all distillation losses, to be subclassed for a loss of your own.

    Override `compute_loss`; `tfkd.Distiller` calls it once a step with the outputs of
    both models (or of the layers that `teacher_layer_name` and `student_layer_name`
    name).

    Args:
        name: name of the term in the progress bar and in TensorBoard; the
            class name in snake case by default.

    Attributes:
        arguments: names of the constructor's arguments, other than `name`, that `get_config`
            returns. Each is an attribute, too: a number, schedule, string, Keras object, ...
        on_logits: whether the loss compares class scores. If it does, the Distiller
            passes logits (it inverts a softmax at the end of a model) and averages the
            probabilities of several teachers; otherwise it passes outputs unchanged and
            averages their values.

    Example:
        >>> import tensorflow as tf
        >>> import tfkd
        >>> class Difference(tfkd.losses.DistillationLoss):
        ...     def compute_loss(self, teacher_outputs, student_outputs, **kwargs):
        ...         return tf.reduce_mean(tf.abs(teacher_outputs - student_outputs))
        >>> float(Difference().compute_loss(tf.constant([[2.0]]), tf.constant([[1.5]])))
        0.5
    """

    arguments: tuple[str, ...] = ()
    on_logits = False
    default_name: str | None = None
    teacher_layer_name: str | None = None
    student_layer_name: str | None = None

    def __init__(self, name: str | None = None):
        self.name = name

    @property
    def name(self) -> str:
        """Name of the term in logs."""
        return getattr(self, "_name", None) or self.default_name or snake_case(type(self).__name__)

    @name.setter
    def name(self, value: str | None) -> None:
        if value is not None and (not isinstance(value, str) or not value):
            raise checks.type_error("name", "a non-empty string or None", value)
        self._name = value

    def compute_loss(
        self, teacher_outputs: Structure, student_outputs: Structure, **kwargs: Any
    ) -> tf.Tensor:
        """Returns the loss as a scalar tensor: a mean over the examples given.

        Args:
            teacher_outputs: outputs of the teacher, (B, ...) tensors in the structure
                of the model's output; no gradient flows into them.
            student_outputs: outputs of the student, in the same structure.
            **kwargs: `y` (targets or None), `sample_weight` (or None), `step` (int64
                scalar, the optimizer's step) and `shared` (a `Shared`); a method receives
                only those that its signature names.
        """
        raise NotImplementedError(
            f"{type(self).__name__} must implement compute_loss(teacher_outputs, "
            "student_outputs, **kwargs) and return a scalar tensor."
        )

    def validate_outputs(self, teacher_outputs: Structure, student_outputs: Structure) -> None:
        """Raises ValueError unless both outputs have the same structure."""
        same_structure("teacher", teacher_outputs, "student", student_outputs)

    def validate_model_compatibility(self, teacher: object, student: object) -> None:
        """Raises ValueError if this loss can't compare the two models."""

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments from which `from_config` makes an equal loss."""
        values = {name: serialize(name, getattr(self, name)) for name in self.arguments}
        return {"name": getattr(self, "_name", None), **values}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> DistillationLoss:
        """Makes the loss that `get_config` described."""
        return cls(**{n: deserialize(v) if n in cls.arguments else v for n, v in config.items()})


class ElementwiseLoss(DistillationLoss):
    """Base class of losses that are a mean over examples, or over positions."""

    def elements(
        self,
        teacher_outputs: Structure,
        student_outputs: Structure,
        y: Structure | None = None,
        sample_weight: Structure | None = None,
        step: tf.Tensor | int | None = None,
    ) -> list[Elements | None]:
        """Returns the unreduced loss of each output, None for an output without a loss.

        Outputs are in the order of `tf.nest.flatten`, in which sample weights per output
        are matched with them. Sample weights are not applied here.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement elements()")

    def compute_loss(
        self, teacher_outputs: Structure, student_outputs: Structure, **kwargs: Any
    ) -> tf.Tensor:
        """Weighted mean of `elements` over the given examples: a scalar tensor."""
        known = {name: kwargs.get(name) for name in ("y", "sample_weight", "step", "shared")}
        parts = self.elements(teacher_outputs, student_outputs, **accepted(self.elements, known))
        sums = weighted_sums(parts, known["sample_weight"], self, student_outputs)
        return tf.add_n([mean_of(total, count) for total, count in sums])


class OneOutput(DistillationLoss):
    """Base class of losses on one output of a model.

    Args:
        output: name (dict) or index (list) of the output, for a model with several.
        name: name of the term in logs.
    """

    arguments: tuple[str, ...] = ("output",)

    def __init__(self, output: str | int | None = None, name: str | None = None):
        super().__init__(name)
        if not (output is None or isinstance(output, (str, int))) or isinstance(output, bool):
            raise checks.type_error("output", "a name (dict), an index (list) or None", output)
        self.output = output

    def validate_outputs(self, teacher_outputs, student_outputs):
        """Raises ValueError unless both models have the output."""
        self._select(teacher_outputs)
        self._select(student_outputs)

    def _select(self, outputs: Structure) -> tf.Tensor:
        return select(outputs, self.output, self.name)

    def _labels(self, y: Structure | None, kind: str = "labels", fix: str | None = None) -> Any:
        """The targets of the output; raises ValueError if there are none."""
        if y is None:
            raise checks.value_error("y", f"{kind}, which {self.name} needs", y, fix)
        return select_like(y, self.output, self.name)


def accepted(function: Callable[..., Any], known: dict[str, Any]) -> dict[str, Any]:
    """Returns the keyword arguments that a function accepts."""
    parameters = inspect.signature(function).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return known
    return {name: value for name, value in known.items() if name in parameters}


def same_structure(first_name: str, first: object, second_name: str, second: object) -> None:
    """Raises ValueError unless two nested structures have the same keys and lengths."""
    try:
        tf.nest.assert_same_structure(_lists(first), _lists(second))
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{first_name} and {second_name} outputs must have the same structure. "
            f"{first_name}: {_form(first)}; {second_name}: {_form(second)}. Give both models the "
            "same outputs, or name the layers to compare."
        ) from error


def _lists(structure: object) -> object:
    """Turns tuples into lists, between which neither models nor JSON distinguish."""
    if isinstance(structure, dict):
        return {key: _lists(item) for key, item in structure.items()}
    if isinstance(structure, (list, tuple)):
        return [_lists(item) for item in structure]
    return structure


def _form(structure: object) -> str:
    return str(tf.nest.map_structure(lambda leaf: tuple(getattr(leaf, "shape", ())), structure))


def select(outputs: Structure, output: str | int | None, owner: str) -> tf.Tensor:
    """Selects one output of a model with several, by name (dict) or index (list)."""
    several = isinstance(outputs, (dict, list, tuple))
    if output is None:
        if several:
            raise ValueError(
                f"`output`: {owner} works on one output, and the model has several: "
                f"{_form(outputs)}. Pass output= with a name (dict) or an index (list)."
            )
        return outputs
    try:
        # A tensor must not be indexed: its first axis is the batch.
        chosen = outputs[output] if several else None  # type: ignore[index]
    except (KeyError, IndexError, TypeError):
        chosen = None
    if chosen is not None and not isinstance(chosen, (dict, list, tuple)):
        return chosen
    expected = f"a name or index of the model's outputs {_form(outputs)}"
    raise checks.value_error("output", expected, output)


def select_like(values: Structure | None, output: str | int | None, owner: str) -> tf.Tensor | None:
    """Selects targets or weights as `select` does outputs; a single array is returned as is."""
    return select(values, output, owner) if isinstance(values, (dict, list, tuple)) else values


def only(part: Elements, outputs: Structure, chosen: tf.Tensor) -> list[Elements | None]:
    """Returns `part` for the `chosen` output and None for all others."""
    flat = tf.nest.flatten(outputs)
    place = next(i for i, leaf in enumerate(flat) if leaf is chosen)
    return [part if i == place else None for i in range(len(flat))]


def mask_of(tensor: tf.Tensor) -> tf.Tensor | None:
    """Returns the mask that Keras attached to a layer's output, or None."""
    return getattr(tensor, "_keras_mask", None)


def at_step(
    name: str, value: float | schedules.Schedule, step: tf.Tensor | int | None
) -> float | tf.Tensor:
    """Returns an argument's value at this step: the number, or the value of its schedule."""
    if step is None and not checks.is_number(value):
        needs = f"`{name}` is a schedule, so compute_loss needs step="
        raise ValueError(f"`step`: {needs}, received None.")
    return schedules.value_at(value, step)


def check_temperature(temperature: Value) -> float | schedules.Schedule:
    """Accepts a number above 0 or a schedule; ValueError as in `keras.distillation`."""
    try:
        return schedules.get("temperature", temperature, checks.positive)
    except TypeError as error:
        raise ValueError(str(error)) from error


def register(cls: type) -> type:
    """Registers a loss with Keras, so that saved models load without custom objects."""
    return keras.saving.register_keras_serializable(package="tfkd")(cls)
