"""Channel ids of tensors, and a union-find of coupled channels with the weights they own.

An **atom** is the id of one channel at the layer that produces it. The channel axis of
every tensor is an array of atoms, and union-find merges those that must be pruned
together. A flag beside each channel says whether its activation is **zero** once its
filters, biases and batch-norm parameters are zero: only then can a layer that mixes
channels drop it without changing its output.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import numpy as np

FIXED = -1  # in an array of atoms: a channel that is not tracked and never pruned


@dataclasses.dataclass(frozen=True)
class Channels:
    """The channels of one tensor.

    Attributes:
        shape: shape of the tensor, batch axis included; None for an open size.
        axis: the channel axis, from 0; None if the tensor's channels are not tracked.
        atoms: int array (C,), the atom of each channel.
        zero: bool array (C,), True where the activation is zero when the atom is masked.
    """

    shape: tuple[int | None, ...]
    axis: int | None = None
    atoms: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, int))
    zero: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, bool))

    @property
    def from_end(self) -> int | None:
        """The channel axis counted from the end, -1 for the last."""
        return None if self.axis is None else self.axis - len(self.shape)

    def reshaped(self, shape: tuple[int | None, ...], axis: int | None = None) -> Channels:
        """The same channels in a tensor of another shape, optionally on another axis."""
        return dataclasses.replace(self, shape=shape, axis=self.axis if axis is None else axis)

    def with_zero(self, zero: np.ndarray | bool) -> Channels:
        """The same channels with `zero` replaced by an array or a single value."""
        return dataclasses.replace(self, zero=np.broadcast_to(zero, self.atoms.shape))


class Ledger:
    """Atoms with their couplings, reasons for freezing, and the weight slices they own."""

    def __init__(self) -> None:
        self._parent: list[int] = []
        self.reasons: dict[int, str] = {}  # atom → why it is frozen
        self.summed: set[int] = set()  # atoms that a sum of branches couples to others
        # (layer, weight, axis) → (atoms, zeroed, scored)
        self.axes: dict[tuple[str, str, int], tuple[np.ndarray, bool, bool]] = {}
        self.costs: dict[tuple[str, str], int] = {}
        self.resizes: dict[tuple[str, str, int | None], np.ndarray] = {}
        self.paths: dict[int, str] = {}  # id of a layer → the path of its first visit
        # path → the atoms counted by the layer's weights and config, extended by each call
        self.noted: dict[str, list[np.ndarray]] = defaultdict(list)
        # for each call: path of the layer, and (args, kwargs), once with `Channels` in place
        # of tensors and once as Keras recorded them
        self.calls: list[tuple[str, Any, Any]] = []
        self._fixed: set[str] = set()
        self.fixed_macs = 0
        self.uncounted: list[str] = []
        self.unruled: list[str] = []
        # path → channels, and why they are frozen, of layers that the analysis does not enter
        self.hidden: dict[str, tuple[int, str]] = {}

    def new(self, count: int) -> np.ndarray:
        """Creates `count` new atoms."""
        first = len(self._parent)
        self._parent.extend(range(first, first + count))
        return np.arange(first, first + count)

    def root(self, atom: int) -> int:
        """The representative of the set of coupled atoms that this one belongs to."""
        parent = self._parent
        while parent[atom] != atom:
            parent[atom] = parent[parent[atom]]  # path halving
            atom = parent[atom]
        return atom

    def roots(self, atoms: np.ndarray) -> np.ndarray:
        """`root` of each atom; FIXED for FIXED."""
        return np.array([a if a == FIXED else self.root(a) for a in atoms.tolist()], int)

    def unite(self, first: np.ndarray, second: np.ndarray, reason: str) -> None:
        """Couples atoms pairwise; freezes, for `reason`, those coupled to a FIXED one."""
        different = first != second
        for a, b in zip(first[different].tolist(), second[different].tolist(), strict=True):
            if a == FIXED or b == FIXED:
                self.reasons.setdefault(max(a, b), reason)
                continue
            a, b = self.root(a), self.root(b)
            if a != b:
                self._parent[max(a, b)] = min(a, b)

    def freeze(self, atoms: Iterable[int], reason: str) -> None:
        """Excludes atoms from pruning; the first reason given is kept."""
        for atom in np.asarray(atoms).tolist():
            if atom != FIXED:
                self.reasons.setdefault(atom, reason)

    def note(self, path: str, atoms: np.ndarray) -> None:
        """Records that a layer's weights or config depend on the number of these channels."""
        self.noted[path].append(atoms)
        if path in self._fixed:
            self.fix(path)

    def fix(self, path: str) -> None:
        """Freezes the channels of all calls of a layer, since those of one call are frozen."""
        self._fixed.add(path)
        for atoms in self.noted[path]:
            self.freeze(atoms, f"{path} is shared with frozen channels")

    def own(self, key: tuple[str, str, int], atoms: np.ndarray, zeroed: bool, scored: bool) -> None:
        """Records the atoms that own one axis of a weight; couples those of a second call."""
        known = self.axes.get(key)
        self.note(key[0], atoms)
        if known is None:
            self.axes[key] = (atoms, zeroed, scored)
        else:
            self.unite(known[0], atoms, f"{key[0]} is shared with frozen channels")
