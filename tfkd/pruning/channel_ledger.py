"""What is known of a tensor's channels, and the bookkeeping of what goes together.

An **atom** is one channel where it is made. The channel axis of every tensor is
an array of atoms; union-find says which of them can only go together. Beside
each channel stands whether its value is **zero** once its filters, biases and
batch normalizations are set to zero: only then may a layer that mixes channels
do without it.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import numpy as np

FIXED = -1  # in an array of atoms: a channel that is not followed and always stays


@dataclasses.dataclass(frozen=True)
class Channels:
    """The channels of one tensor.

    Attributes:
        shape: of the tensor, batch axis included; None where open.
        axis: the channel axis, from 0; None: nothing of this tensor can go.
        atoms: int array (C,), the atom of each channel.
        zero: bool array (C,), True where the value is zero when the atom goes.
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
        """The same channels in a tensor of another shape, at another axis."""
        return dataclasses.replace(self, shape=shape, axis=self.axis if axis is None else axis)

    def with_zero(self, zero: Any) -> Channels:
        """The same channels with another array (or one value) of `zero`."""
        return dataclasses.replace(self, zero=np.broadcast_to(zero, self.atoms.shape))


class Ledger:
    """Atoms, which of them go together, which stay and why, and the weights they own."""

    def __init__(self) -> None:
        self._parent: list[int] = []
        self.reasons: dict[int, str] = {}  # atom → why it stays
        self.summed: set[int] = set()  # atoms that a sum of branches tied to others
        # (layer, weight, axis) → [atoms, zeroed, scored]
        self.axes: dict[tuple[str, str, int], tuple[np.ndarray, bool, bool]] = {}
        self.costs: dict[tuple[str, str], int] = {}
        self.resizes: dict[tuple[str, str, int | None], np.ndarray] = {}
        self.paths: dict[int, str] = {}  # id of a layer → the first path that it was met at
        # path → the atoms that its weights and sizes count, a list that each call adds to
        self.noted: dict[str, list[np.ndarray]] = defaultdict(list)
        self._fixed: set[str] = set()
        self.fixed_macs = 0
        self.uncounted: list[str] = []
        self.unruled: list[str] = []

    def new(self, count: int) -> np.ndarray:
        """Makes `count` new atoms."""
        first = len(self._parent)
        self._parent.extend(range(first, first + count))
        return np.arange(first, first + count)

    def root(self, atom: int) -> int:
        """The atom that stands for all that go together with this one."""
        parent = self._parent
        while parent[atom] != atom:
            parent[atom] = parent[parent[atom]]
            atom = parent[atom]
        return atom

    def roots(self, atoms: np.ndarray) -> np.ndarray:
        """`root` of each atom; FIXED stays FIXED."""
        return np.array([a if a == FIXED else self.root(a) for a in atoms.tolist()], int)

    def unite(self, first: np.ndarray, second: np.ndarray, reason: str) -> None:
        """Ties atoms pairwise; what is tied to a FIXED one stays, for `reason`."""
        different = first != second
        for a, b in zip(first[different].tolist(), second[different].tolist(), strict=True):
            if a == FIXED or b == FIXED:
                self.reasons.setdefault(max(a, b), reason)
                continue
            a, b = self.root(a), self.root(b)
            if a != b:
                self._parent[max(a, b)] = min(a, b)

    def freeze(self, atoms: Iterable[int], reason: str) -> None:
        """Keeps atoms for good."""
        for atom in np.asarray(atoms).tolist():
            if atom != FIXED:
                self.reasons.setdefault(atom, reason)

    def note(self, path: str, atoms: np.ndarray) -> None:
        """Notes that a layer's weights or sizes count these channels."""
        self.noted[path].append(atoms)
        if path in self._fixed:
            self.fix(path)

    def fix(self, path: str) -> None:
        """Keeps all that a layer counts at any of its calls: one call has channels that stay."""
        self._fixed.add(path)
        for atoms in self.noted[path]:
            self.freeze(atoms, f"{path} is shared with channels that stay")

    def own(self, key: tuple[str, str, int], atoms: np.ndarray, zeroed: bool, scored: bool) -> None:
        """Notes whose the indices of one axis of one weight are; a second call ties them."""
        known = self.axes.get(key)
        self.note(key[0], atoms)
        if known is None:
            self.axes[key] = (atoms, zeroed, scored)
        else:
            self.unite(known[0], atoms, f"{key[0]} is shared with channels that stay")
