"""Layout of precomputed teacher outputs: which tensor holds what, and top-k scores."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import tensorflow as tf


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

    @classmethod
    def from_dict(cls, config: dict[str, Any]) -> Layout:
        """Reads what `dataclasses.asdict` gave."""
        config = dict(config)
        config["finals"] = tuple(slot_of(slot) for slot in config["finals"])
        config["features"] = {name: slot_of(slot) for name, slot in config["features"].items()}
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


def slot_of(config: dict[str, Any]) -> Slot:
    return Slot(config["name"], tuple(config["shape"]), config["dtype"], config["squash"])


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
