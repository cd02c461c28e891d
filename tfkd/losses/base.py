"""What every distillation loss is: a name, a config, and one of two methods.

* A loss that is a mean over examples (or positions) implements `elements`:
  one value per example, and the reduction is done once, here and in the
  Distiller, with sample weights, masks and the global batch of a strategy.
* A loss of the batch as a whole (relations between examples, or a user's own)
  overrides `compute_loss` and returns a scalar: the mean over the examples it
  was given.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

import tensorflow as tf
import tf_keras as keras

from tfkd import checks, schedules
from tfkd.schedules import Value
from tfkd.types import Structure

T = TypeVar("T")


class Elements(NamedTuple):
    """One output's unreduced loss.

    Attributes:
        values: float32 (B, ...), one loss per example or position.
        mask: (B, ...) bool, True where a value counts; None: everywhere.
        total: True for a sum over all the values in place of their mean.
        count: float32 scalar that the sum is divided by (at least 1), such as the
            number of objects; None: the number of values that count.
    """

    values: tf.Tensor
    mask: tf.Tensor | None = None
    total: bool = False
    count: tf.Tensor | None = None  # type: ignore[assignment]  # tuple.count, which none uses


class Shared:
    """What the losses of one step share: worked out once, for the first that asks.

    Attributes:
        selection: the `MultiBoxSelection` of the losses that have one, for those that
            have none of their own; None if there is none.
        teacher: the teacher's outputs, for losses on the labels that look at them.
    """

    def __init__(self, losses: Iterable[object] = (), teacher: Structure | None = None):
        each = [getattr(loss, "selection", None) for loss in losses]
        self.selection = next((one for one in each if one is not None), None)
        self.teacher = teacher
        self._values: dict[Hashable, Any] = {}

    def once(self, key: Hashable, compute: Callable[[], T]) -> T:
        """The value of `key`, computed by the first call."""
        if key not in self._values:
            self._values[key] = compute()
        return self._values[key]


def snake_case(name: str) -> str:
    """LogitsDistillation → logits_distillation."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


class DistillationLoss:
    """Base class of what a student learns from a teacher.

    Subclass it and override `compute_loss`; `tfkd.Distiller` calls it once a
    step with the outputs of both models (or of the layers that
    `teacher_layer_name` and `student_layer_name` name).

    Args:
        name: name of the term in the progress bar and in TensorBoard; the
            class name in snake case by default.

    Attributes:
        on_logits: whether the loss compares class scores. Then the Distiller
            hands it logits (a softmax at a model's end is undone), and several
            teachers are averaged in probability; otherwise outputs come as they
            are and several teachers are averaged in value.

    Example:
        >>> import tensorflow as tf
        >>> import tfkd
        >>> class Difference(tfkd.losses.DistillationLoss):
        ...     def compute_loss(self, teacher_outputs, student_outputs, **kwargs):
        ...         return tf.reduce_mean(tf.abs(teacher_outputs - student_outputs))
        >>> float(Difference().compute_loss(tf.constant([[2.0]]), tf.constant([[1.5]])))
        0.5
    """

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
            teacher_outputs: outputs of the teacher, (B, ...) tensors in the
                structure of the model's output, no gradient flows into them.
            student_outputs: the student's, in the same structure.
            **kwargs: `y` (targets or None), `sample_weight` (or None), `step`
                (int64 scalar, the optimizer's count) and `shared` (what the losses
                of one step work out once); a method that does not name one of
                them is not given it.
        """
        raise NotImplementedError(
            f"{type(self).__name__} must implement compute_loss(teacher_outputs, "
            "student_outputs, **kwargs) and return a scalar tensor."
        )

    def validate_outputs(self, teacher_outputs: Structure, student_outputs: Structure) -> None:
        """Raises ValueError unless both outputs have one structure."""
        same_structure("teacher", teacher_outputs, "student", student_outputs)

    def validate_model_compatibility(self, teacher: object, student: object) -> None:
        """Raises ValueError if this loss can't work between the two models."""

    def get_config(self) -> dict[str, Any]:
        """What `from_config` needs to make this loss again."""
        return {"name": getattr(self, "_name", None)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> DistillationLoss:
        """Makes the loss that `get_config` described."""
        return cls(**config)


class ElementwiseLoss(DistillationLoss):
    """A distillation loss that is a mean over examples, or over positions."""

    def elements(
        self,
        teacher_outputs: Structure,
        student_outputs: Structure,
        y: Structure | None = None,
        sample_weight: Structure | None = None,
        step: tf.Tensor | int | None = None,
    ) -> list[Elements | None]:
        """Returns the unreduced loss of each output, None for one left out.

        Outputs are in the order of `tf.nest.flatten`, so that weights given per
        output find theirs. Weights are not applied here.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement elements()")

    def compute_loss(
        self, teacher_outputs: Structure, student_outputs: Structure, **kwargs: Any
    ) -> tf.Tensor:
        """Weighted mean of `elements` over the examples given: a scalar tensor."""
        known = {name: kwargs.get(name) for name in ("y", "sample_weight", "step", "shared")}
        parts = self.elements(teacher_outputs, student_outputs, **accepted(self.elements, known))
        sums = weighted_sums(parts, known["sample_weight"])
        return tf.add_n([mean_of(total, count) for total, count in sums])


def accepted(function: Callable[..., Any], known: dict[str, Any]) -> dict[str, Any]:
    """Those of the keyword arguments that a function takes."""
    parameters = inspect.signature(function).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return known
    return {name: value for name, value in known.items() if name in parameters}


def weighted_sums(
    parts: Sequence[Elements | None], sample_weight: Structure | None
) -> list[tuple[tf.Tensor, tf.Tensor | None]]:
    """Sum and count of each part, so that sum / count is its mean; count None: a sum.

    As in Keras, the count is that of the values (of those that the mask leaves),
    not the sum of the weights: doubling every weight doubles the loss.
    """
    weights = tf.nest.flatten(sample_weight) if sample_weight is not None else [None]
    if len(weights) == 1:
        weights = weights * len(parts)
    if len(weights) != len(parts):
        raise checks.value_error(
            "sample_weight", f"one array, or one for each of {len(parts)} outputs", sample_weight
        )
    return [_weighted_sum(p, w) for p, w in zip(parts, weights, strict=True) if p is not None]


def _weighted_sum(part: Elements, weight: tf.Tensor | None) -> tuple[tf.Tensor, tf.Tensor | None]:
    values = part.values
    if weight is not None:
        values = values * align("sample_weight", tf.cast(weight, tf.float32), values)
    if part.mask is None:
        count = tf.cast(tf.size(part.values), tf.float32)
    else:
        mask = align("mask", tf.cast(part.mask, tf.bool), values)
        kept = tf.broadcast_to(mask, tf.shape(values))
        values = tf.where(kept, values, 0.0)
        count = tf.reduce_sum(tf.cast(kept, tf.float32))
    if part.count is not None:
        count = part.count
    return tf.reduce_sum(values), None if part.total else count


def mean_of(total: tf.Tensor, count: tf.Tensor | None) -> tf.Tensor:
    """sum / count, 0 where nothing was counted; the sum itself where count is None."""
    # A count is a whole number: only 0 is changed.
    return total if count is None else total / tf.maximum(count, 1.0)


def align(name: str, weight: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    """Gives `weight` the rank of `values`: drops or adds axes of size 1 at the end."""
    rank = len(values.shape)
    while len(weight.shape) > rank and weight.shape[-1] == 1:
        weight = tf.squeeze(weight, -1)
    if len(weight.shape) > rank > 0:
        raise checks.value_error(
            name, f"a shape that fits the loss's values, {tuple(values.shape)}", weight
        )
    while len(weight.shape) < rank:
        weight = weight[..., None]
    return weight


def same_structure(first_name: str, first: object, second_name: str, second: object) -> None:
    """Raises ValueError unless two nested structures have the same form."""
    try:
        tf.nest.assert_same_structure(_lists(first), _lists(second))
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{first_name} and {second_name} outputs must have one structure. "
            f"{first_name}: {_form(first)}; {second_name}: {_form(second)}. Give both models the "
            "same outputs, or name the layers to compare."
        ) from error


def _lists(structure: object) -> object:
    """The structure with tuples as lists: models and JSON do not keep them apart."""
    if isinstance(structure, dict):
        return {key: _lists(item) for key, item in structure.items()}
    if isinstance(structure, (list, tuple)):
        return [_lists(item) for item in structure]
    return structure


def _form(structure: object) -> str:
    return str(tf.nest.map_structure(lambda leaf: tuple(getattr(leaf, "shape", ())), structure))


def check_output(output: object) -> str | int | None:
    """Accepts a name or an index of one of a model's outputs, or None."""
    if output is None or (isinstance(output, (str, int)) and not isinstance(output, bool)):
        return output
    raise checks.type_error("output", "a name (dict), an index (list) or None", output)


def select(outputs: Structure, output: str | int | None, owner: str) -> tf.Tensor:
    """Picks one output of a model with several, by name (dict) or index (list)."""
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
    raise checks.value_error(
        "output", f"a name or index of the model's outputs {_form(outputs)}", output
    )


def select_like(values: Structure | None, output: str | int | None, owner: str) -> tf.Tensor | None:
    """Picks targets or weights as `select` picks outputs; one array serves as it is."""
    return select(values, output, owner) if isinstance(values, (dict, list, tuple)) else values


def only(part: Elements, outputs: Structure, chosen: tf.Tensor) -> list[Elements | None]:
    """`part` at the place of the `chosen` output, None at the others."""
    flat = tf.nest.flatten(outputs)
    place = next(i for i, leaf in enumerate(flat) if leaf is chosen)
    return [part if i == place else None for i in range(len(flat))]


def mask_of(tensor: tf.Tensor) -> tf.Tensor | None:
    """The mask that Keras attached to a layer's output, or None."""
    return getattr(tensor, "_keras_mask", None)


def at_step(
    name: str, value: float | schedules.Schedule, step: tf.Tensor | int | None
) -> float | tf.Tensor:
    """An argument's value at this step: a number, or what its schedule says."""
    if step is None and not checks.is_number(value):
        raise ValueError(
            f"`step`: `{name}` is a schedule, so compute_loss needs step=, received None."
        )
    return schedules.value_at(value, step)


def check_temperature(temperature: Value) -> float | schedules.Schedule:
    """Accepts a number above 0 or a schedule; ValueError as in `keras.distillation`."""
    try:
        return schedules.get("temperature", temperature, checks.positive)
    except TypeError as error:
        raise ValueError(str(error)) from error


def register(cls: type) -> type:
    """Registers a loss so that files that name it load without custom objects."""
    return keras.saving.register_keras_serializable(package="tfkd")(cls)
