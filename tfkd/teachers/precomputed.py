"""Precomputed teachers: their outputs come with the batches, and no teacher runs in the step.

A batch x becomes {"tfkd_inputs": x, "tfkd_teacher": {identity: {...}}}, whether the
outputs come from a cache on disk or a teacher on another machine. In a step they are
returned in the form of a forward pass: `(finals, features)`, with the logits behind a
softmax attached.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf

from tfkd import checks
from tfkd.losses.heads import DECLARED_LOGITS, proof, scores_behind
from tfkd.teachers.features import FINAL
from tfkd.teachers.layout import Layout, Slot, TopK, put
from tfkd.types import Structure, Tensor

INPUTS, OUTPUTS = "tfkd_inputs", "tfkd_teacher"
# Value of `Slot.squash` if probabilities are stored in place of logits.
PROBABILITY = "Probability"
_SQUASHES = {"Softmax": tf.nn.softmax, "Sigmoid": tf.sigmoid}


class PrecomputedTeacher:
    """Base class of teachers whose outputs come with the batches of data.

    Args:
        layout: the tensors of its outputs.
        identity: id of the teacher, shared by its outputs for different data sets.
        where: description of the teacher for messages.

    Attributes:
        how: the call that makes batches with its outputs, for messages.
        output_names: the names of the outputs of each teacher, by `forward.output_names`;
            empty if they are not known.
        input_names: those of the inputs, if they were read from a list of arrays.
    """

    how = "cache.batches(x, y, batch_size), with steps_per_epoch"
    output_names: Sequence[Any] = ()
    input_names: Sequence[Any] = ()

    def __init__(self, layout: Layout, identity: str, where: str):
        self.layout = layout
        self.identity = identity
        self.where = where

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers whose outputs are stored."""
        return tuple(self.layout.features)

    def attached(self, x: Structure, outputs: Mapping[str, Tensor]) -> dict[str, Structure]:
        """A batch of inputs together with the teacher's outputs."""
        return {INPUTS: x, OUTPUTS: {self.identity: dict(outputs)}}

    def own(self, outputs: Mapping[str, Any]) -> Mapping[str, Any]:
        """The outputs of this teacher in a batch made by `attached`.

        Raises:
            ValueError: for outputs of another teacher.
        """
        if self.identity not in outputs:
            raise ValueError(
                f"`x`: expected batches with the outputs of {self.where}, received those of "
                f"another teacher ({', '.join(outputs)}; the Distiller's is {self.identity}). "
                "Make the batches and the Distiller with one cache, or with caches of one teacher."
            )
        return outputs[self.identity]

    def forward(self, names: list[str]) -> PrecomputedForward:
        """The replacement of the teacher's forward pass in a Distiller.

        Args:
            names: layers whose features the losses need.

        Raises:
            ValueError: for a layer whose outputs are not stored.
        """
        for name in names:
            if name not in self.layout.features:
                shown = ", ".join(map(repr, self.layers)) or "no layers"
                fix = f"Make it with layers=[{name!r}, ...]."
                expected = f"a layer that {self.where} holds ({shown})"
                raise checks.value_error("teacher_layer_name", expected, name, fix)
        return PrecomputedForward(self, names)


class PrecomputedForward:
    """Turns the stored outputs of a batch into the result of a forward pass."""

    def __init__(self, teacher: PrecomputedTeacher, names: list[str]):
        self.teacher = teacher
        self._names = list(dict.fromkeys(names))

    @property
    def taps(self) -> list[Any]:
        """Stands in for the `Taps` of one teacher, for its static shapes."""
        return [self]

    def static_shape(self, name: str) -> tuple[int | None, ...] | None:
        """Shape of an output, or None if it is nested."""
        layout = self.teacher.layout
        if name == FINAL:
            one = layout.structure[0]
            return (None, *layout.finals[one].shape) if isinstance(one, int) else None
        return (None, *layout.features[name].shape)

    def __call__(self, outputs: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """The final outputs, one per teacher, and the features by layer name."""
        outputs, layout = self.teacher.own(outputs), self.teacher.layout
        leaves = [self._final(slot, outputs) for slot in layout.finals]
        finals = [put(part, leaves) for part in layout.structure]
        features = {n: _real(outputs[layout.features[n].name]) for n in self._names}
        return finals, features

    def _final(self, slot: Slot, outputs: Mapping[str, Any]) -> Any:
        stored = self.teacher.layout.final(slot.name, outputs)
        if isinstance(stored, TopK):
            values, indices, rest = stored
            return TopK(_real(values), tf.cast(indices, tf.int32), _real(rest))
        scores = _real(stored)
        if slot.squash in (None, PROBABILITY):
            return scores
        final = _SQUASHES[slot.squash](scores)
        final._keras_logits = scores
        return final


def _real(tensor: Any) -> Any:
    """Casts floats to float32, and stops the gradient into stored outputs."""
    tensor = tf.convert_to_tensor(tensor)
    return tf.stop_gradient(tf.cast(tensor, tf.float32) if tensor.dtype.is_floating else tensor)


def split(x: Any) -> tuple[Any, Any]:
    """Splits a batch into the inputs and the teacher's outputs, or None if there are none."""
    if isinstance(x, Mapping) and INPUTS in x and OUTPUTS in x:
        return x[INPUTS], x[OUTPUTS]
    return x, None


def scores_of(tensor: tf.Tensor, kind: str | None) -> tuple[Any, str | None]:
    """The stored form of a final output: its logits, and "Softmax", "Sigmoid" or None.

    Args:
        tensor: a tensor of a graph.
        kind: its kind, from `output_kinds.settle`.
    """
    if not tensor.dtype.is_floating:
        return tensor, None
    kind = kind or "logits"
    proved = None if kind == DECLARED_LOGITS else proof(tensor)
    if proved is not None and proved.kind != "logits":
        kind = proved.kind
    squash = {"softmax": "Softmax", "sigmoid": "Sigmoid"}.get(kind)
    return (tensor if squash is None else scores_behind(tensor, kind)), squash
