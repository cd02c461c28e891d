"""Layout of precomputed teacher outputs: names, shapes and dtypes of the stored tensors."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import tensorflow as tf


class TopK(NamedTuple):
    """The k highest class scores of a teacher, and one bucket for all other classes.

    Attributes:
        values: (..., k) scores, highest first.
        indices: (..., k) int32, the class of each score.
        rest: (..., 1) T · log Σ exp(z / T) over all other classes.
    """

    values: Any
    indices: Any
    rest: Any


@dataclasses.dataclass(frozen=True)
class Slot:
    """One stored tensor of a teacher's outputs.

    Attributes:
        name: "final.0" for the first leaf of the final output, else "feature.0" and so on.
        shape: shape for one example.
        dtype: stored dtype.
        squash: "Softmax" or "Sigmoid" if the model ends in one; the logits before it are
            stored.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    squash: str | None = None


@dataclasses.dataclass(frozen=True)
class Layout:
    """The stored outputs of a teacher for one example.

    Attributes:
        structure: list of the final output of each teacher, as nested dicts and lists whose
            leaves are indices into `finals`.
        finals: a slot for each leaf.
        features: layer name → slot.
        top_k: number of scores stored of each final output; None: all.
        temperature: T of the bucket for the other classes.
        teachers: number of teachers.
    """

    structure: Any
    finals: tuple[Slot, ...]
    features: Mapping[str, Slot]
    top_k: int | None = None
    temperature: float | None = None
    teachers: int = 1

    @classmethod
    def from_dict(cls, config: dict[str, Any]) -> Layout:
        """The inverse of `dataclasses.asdict`."""
        config = dict(config)
        config["finals"] = tuple(slot_of(slot) for slot in config["finals"])
        config["features"] = {name: slot_of(slot) for name, slot in config["features"].items()}
        return cls(**config)

    def final(self, name: str, outputs: Mapping[str, Any]) -> Any:
        """The scores of the final output of this name among stored outputs, or its `TopK`."""
        if self.top_k is None:
            return outputs[name]
        return TopK(*(outputs[f"{name}.{part}"] for part in TopK._fields))

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
    """Shape and dtype of the parts of top-k scores: values, indices, rest."""
    index = "uint16" if slot.shape[-1] <= 1 << 16 else "int32"
    outer = slot.shape[:-1]
    return {
        "values": ((*outer, k), slot.dtype),
        "indices": ((*outer, k), index),
        "rest": ((*outer, 1), "float32"),
    }


def slot_of(config: dict[str, Any]) -> Slot:
    return Slot(config["name"], tuple(config["shape"]), config["dtype"], config["squash"])


def take(structure: Any, leaves: list[Any]) -> Any:
    """A nested structure with tensors replaced by indices into `leaves`, which is appended to."""
    if isinstance(structure, Mapping):
        return {key: take(structure[key], leaves) for key in sorted(structure)}
    if isinstance(structure, (list, tuple)):
        return [take(part, leaves) for part in structure]
    leaves.append(structure)
    return len(leaves) - 1


def put(structure: Any, leaves: list[Any]) -> Any:
    """The inverse of `take`: the nested structure with indices replaced by leaves."""
    if isinstance(structure, Mapping):
        return {key: put(part, leaves) for key, part in structure.items()}
    if isinstance(structure, list):
        return [put(part, leaves) for part in structure]
    return leaves[structure]
