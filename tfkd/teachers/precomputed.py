"""Teachers that do not run in the step: their outputs ride along with the data.

A batch x becomes {"tfkd_inputs": x, "tfkd_teacher": {identity: {...}}}; what made the
outputs, a cache on disk or a teacher on another machine, is behind one interface. In a step they
are put together as if the teacher had run: `(finals, features)`, with the scores behind
a softmax at hand.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from tfkd import checks
from tfkd.losses.heads import DECLARED_LOGITS, proof, scores_behind
from tfkd.teachers.features import FINAL
from tfkd.teachers.layout import Layout, Slot, TopK, put

INPUTS, OUTPUTS = "tfkd_inputs", "tfkd_teacher"
# In the place of a squash: the probabilities themselves are stored.
PROBABILITY = "Probability"
_SQUASHES = {"Softmax": tf.nn.softmax, "Sigmoid": tf.sigmoid}


class PrecomputedTeacher:
    """Base of teachers whose outputs come with the batches of data.

    Args:
        layout: what they give.
        identity: of the teacher: outputs of one teacher for several data sets share it.
        where: what it is, for messages.

    Attributes:
        how: what a user calls to get batches with its outputs, for messages.
    """

    how = "cache.batches(x, y, batch_size), with steps_per_epoch"

    def __init__(self, layout: Layout, identity: str, where: str):
        self.layout = layout
        self.identity = identity
        self.where = where

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers whose outputs there are."""
        return tuple(self.layout.features)

    def attached(self, x: Any, outputs: Mapping[str, Any]) -> dict[str, Any]:
        """A batch of inputs together with the teacher's outputs."""
        return {INPUTS: x, OUTPUTS: {self.identity: dict(outputs)}}

    def own(self, outputs: Mapping[str, Any]) -> Mapping[str, Any]:
        """What `attached` put in, checked to be of this teacher.

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
        """The place of a forward pass in a Distiller.

        Args:
            names: layers that losses ask for.

        Raises:
            ValueError: for a layer whose outputs there are not.
        """
        for name in names:
            if name not in self.layout.features:
                shown = ", ".join(map(repr, self.layers)) or "no layers"
                fix = f"Make it with layers=[{name!r}, ...]."
                raise checks.value_error(
                    "teacher_layer_name", f"a layer that {self.where} holds ({shown})", name, fix
                )
        return PrecomputedForward(self, names)


class PrecomputedForward:
    """Gives what rode along in the form in which a forward pass gives it."""

    def __init__(self, teacher: PrecomputedTeacher, names: list[str]):
        self.teacher = teacher
        self._names = list(dict.fromkeys(names))

    @property
    def taps(self) -> list[Any]:
        """What stands in the place of one teacher's taps: its static shapes."""
        return [self]

    def static_shape(self, name: str) -> tuple[int | None, ...] | None:
        """Shape of an output, if it is one tensor."""
        layout = self.teacher.layout
        if name == FINAL:
            one = layout.structure[0]
            return (None, *layout.finals[one].shape) if isinstance(one, int) else None
        return (None, *layout.features[name].shape)

    def __call__(self, outputs: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """The final outputs, one a teacher, and the features by layer name."""
        outputs, layout = self.teacher.own(outputs), self.teacher.layout
        leaves = [self._final(slot, outputs) for slot in layout.finals]
        finals = [put(part, leaves) for part in layout.structure]
        features = {n: _real(outputs[layout.features[n].name]) for n in self._names}
        return finals, features

    def _final(self, slot: Slot, outputs: Mapping[str, Any]) -> Any:
        if self.teacher.layout.top_k is not None:
            values, indices, rest = (
                outputs[f"{slot.name}.{part}"] for part in ("values", "indices", "rest")
            )
            return TopK(_real(values), tf.cast(indices, tf.int32), _real(rest))
        scores = _real(outputs[slot.name])
        if slot.squash in (None, PROBABILITY):
            return scores
        final = _SQUASHES[slot.squash](scores)
        final._keras_logits = scores
        return final


def _real(tensor: Any) -> Any:
    """Half precision as float32; nothing flows back into what was stored."""
    tensor = tf.convert_to_tensor(tensor)
    return tf.stop_gradient(tf.cast(tensor, tf.float32) if tensor.dtype.is_floating else tensor)


def split(x: Any) -> tuple[Any, Any]:
    """Inputs, and the teacher's outputs that ride along with them, or None."""
    if isinstance(x, Mapping) and INPUTS in x and OUTPUTS in x:
        return x[INPUTS], x[OUTPUTS]
    return x, None


def scores_of(tensor: Any, kind: str | None) -> tuple[Any, str | None]:
    """A final output as it is stored: the scores behind its squash, and which that is.

    Args:
        tensor: of a graph.
        kind: what it was found to be, as `telling.settle` gives it.
    """
    if not tensor.dtype.is_floating:
        return tensor, None
    kind = kind or "logits"
    proved = None if kind == DECLARED_LOGITS else proof(tensor)
    if proved is not None and proved.kind != "logits":
        kind = proved.kind
    squash = {"softmax": "Softmax", "sigmoid": "Sigmoid"}.get(kind)
    return (tensor if squash is None else scores_behind(tensor, kind)), squash
