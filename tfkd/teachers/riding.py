"""Teachers that do not run in the step: their outputs ride along with the data.

A batch x becomes {"tfkd_inputs": x, "tfkd_teacher": {identity: {...}}}; what made the
outputs, a cache on disk or a teacher on another machine, is behind one interface. In a step they
are put together as if the teacher had run: `(finals, features)`, with the scores behind
a softmax at hand.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import tensorflow as tf

from tfkd import checks
from tfkd.losses.heads import DECLARED_LOGITS, proof, scores_behind
from tfkd.teachers.taps import FINAL

INPUTS, OUTPUTS = "tfkd_inputs", "tfkd_teacher"
# In the place of a squash: the probabilities themselves are stored.
PROBABILITY = "Probability"
_SQUASHES = {"Softmax": tf.nn.softmax, "Sigmoid": tf.sigmoid}


class TopK(NamedTuple):
    """The highest class scores of a teacher, and what is left in one bucket.

    Attributes:
        values: (..., k) scores, highest first.
        indices: (..., k) int32, their classes.
        rest: (..., 1) T · log Σ exp(z / T) over all other classes.
    """

    values: Any
    indices: Any
    rest: Any


@dataclasses.dataclass(frozen=True)
class Slot:
    """One tensor of a teacher's outputs.

    Attributes:
        name: "final.0" for the first leaf of the final output, else "feature.<layer>".
        shape: of one example.
        dtype: as it is stored.
        squash: "Softmax" or "Sigmoid" where that is the model's end; the scores behind it
            are stored.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    squash: str | None = None


@dataclasses.dataclass(frozen=True)
class Layout:
    """What a teacher gives for one example.

    Attributes:
        structure: of the final output: a leaf is the number of its slot. JSON: dicts,
            lists, numbers.
        finals: a slot for each leaf.
        features: layer name → slot.
        top_k: how many scores are stored of each final output; None: all.
        temperature: T of the rest bucket.
        teachers: several teachers stand in `structure` as a list.
    """

    structure: Any
    finals: tuple[Slot, ...]
    features: Mapping[str, Slot]
    top_k: int | None = None
    temperature: float | None = None
    teachers: int = 1

    def as_dict(self) -> dict[str, Any]:
        """The layout, fit for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, config: dict[str, Any]) -> Layout:
        """Reads what `as_dict` gave."""
        config = dict(config)
        config["finals"] = tuple(_slot(slot) for slot in config["finals"])
        config["features"] = {name: _slot(slot) for name, slot in config["features"].items()}
        return cls(**config)

    def spec(self) -> dict[str, tf.TensorSpec]:
        """The tensors of a batch, by name."""
        found = {}
        for slot in (*self.finals, *self.features.values()):
            found[slot.name] = tf.TensorSpec((None, *slot.shape), slot.dtype)
            if self.top_k is not None and slot in self.finals:
                for part, form in top_k_forms(slot, self.top_k).items():
                    found[f"{slot.name}.{part}"] = tf.TensorSpec((None, *form[0]), form[1])
                del found[slot.name]
        return found


def top_k_forms(slot: Slot, k: int) -> dict[str, tuple[tuple[int, ...], str]]:
    """Part → shape and type: the scores, their classes, the rest."""
    index = "uint16" if slot.shape[-1] <= 1 << 16 else "int32"
    outer = slot.shape[:-1]
    return {
        "values": ((*outer, k), slot.dtype),
        "indices": ((*outer, k), index),
        "rest": ((*outer, 1), "float32"),
    }


def _slot(config: dict[str, Any]) -> Slot:
    return Slot(config["name"], tuple(config["shape"]), config["dtype"], config["squash"])


class RidingTeacher:
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

    def forward(self, names: list[str]) -> Riding:
        """The place of a forward pass in a Distiller.

        Args:
            names: layers that losses ask for.

        Raises:
            ValueError: for a layer whose outputs there are not.
        """
        for name in names:
            if name not in self.layout.features:
                shown = ", ".join(map(repr, self.layers)) or "no layers"
                mend = f"Make it with layers=[{name!r}, ...]."
                raise checks.value_error(
                    "teacher_layer_name", f"a layer that {self.where} holds ({shown})", name, mend
                )
        return Riding(self, names)


class Riding:
    """Gives what rode along in the form in which a forward pass gives it."""

    def __init__(self, teacher: RidingTeacher, names: list[str]):
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


def take(structure: Any, leaves: list[Any]) -> Any:
    """A nest of tensors as JSON: dicts, lists, and numbers into `leaves`, which grows."""
    if isinstance(structure, Mapping):
        return {key: take(structure[key], leaves) for key in sorted(structure)}
    if isinstance(structure, (list, tuple)):
        return [take(part, leaves) for part in structure]
    leaves.append(structure)
    return len(leaves) - 1


def put(structure: Any, leaves: list[Any]) -> Any:
    """The nest of which `take` gave the structure."""
    if isinstance(structure, Mapping):
        return {key: put(part, leaves) for key, part in structure.items()}
    if isinstance(structure, list):
        return [put(part, leaves) for part in structure]
    return leaves[structure]


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
