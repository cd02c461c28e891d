"""What a rule sees of one call of a layer, and what it may do about its channels."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import tensorflow as tf

from tfkd.pruning.channel_ledger import FIXED, Channels, Ledger


class ChannelCall:
    """One call of a layer in the traced model.

    A rule reads the inputs, notes which axis of which weight belongs to which
    channels, and returns the channels of the outputs.

    Attributes:
        layer: the layer.
        path: its path in the model.
        args, kwargs: the arguments of the call, a `Channels` in place of each tensor.
        inputs: the `Channels` of all tensors among the arguments, in order.
        shapes: shapes of the outputs, batch axis included.
    """

    def __init__(
        self, ledger: Ledger, layer: Any, path: str, args: Any, kwargs: Any, shapes: list[Any]
    ):
        self.ledger = ledger
        self.layer = layer
        self.path = path
        self.args = args
        self.kwargs = kwargs
        self.inputs = [x for x in flatten((args, kwargs)) if isinstance(x, Channels)]
        self.shapes = [tuple(shape) for shape in shapes]

    @property
    def input(self) -> Channels:
        """The first input."""
        return self.inputs[0]

    @property
    def shape(self) -> tuple[int | None, ...]:
        """Shape of the first output."""
        return self.shapes[0]

    @property
    def width(self) -> int:
        """Size of the last axis of the first output."""
        return int(self.shape[-1] or 0)

    # What goes in.

    def at(self, x: Channels, axis: int) -> np.ndarray:
        """The atoms of `x` along `axis` (FIXED if they are not followed there)."""
        axis %= len(x.shape)
        if x.axis == axis:
            return x.atoms
        self.freeze(x, f"{self.path} works along another axis than the channels")
        size = x.shape[axis]
        return np.full(0 if size is None else size, FIXED)

    def mix(self, x: Channels, axis: int) -> np.ndarray:
        """`at`, for a layer that sums over channels: they must be zero when removed."""
        atoms = self.at(x, axis)
        if x.axis is not None and not x.zero.all():
            reason = f"not zero where {self.path} mixes channels"
            self.ledger.freeze(x.atoms[~x.zero], reason)
        return atoms

    def freeze(self, x: Channels, reason: str) -> None:
        """Keeps all channels of `x`, for a reason that the user reads."""
        self.ledger.freeze(x.atoms, reason)

    def freeze_all(self, reason: str) -> list[Channels]:
        """Keeps the channels of all inputs; returns outputs that are not followed."""
        for x in self.inputs:
            self.freeze(x, reason)
        return [Channels(shape) for shape in self.shapes]

    # What the layer owns.

    def weight(
        self, name: str, axis: int, atoms: np.ndarray, zeroed: bool = False, scored: bool = False
    ) -> None:
        """Notes whose the indices of `axis` of the layer's weight `name` are.

        Args:
            name: attribute of the layer, such as "kernel".
            axis: from 0.
            atoms: one for each index along the axis.
            zeroed: True if removing a channel sets the slice to zero.
            scored: True for filters by which a channel is judged.
        """
        self.ledger.own((self.path, name, axis), atoms, zeroed, scored)

    def filters(self, name: str, axis: int, count: int) -> np.ndarray:
        """New channels made by `axis` of weight `name`: the same at each call of the layer."""
        known = self.ledger.axes.get((self.path, name, axis))
        if known is not None:
            return known[0]
        atoms = self.ledger.new(count)
        self.ledger.own((self.path, name, axis), atoms, zeroed=True, scored=True)
        return atoms

    def cost(self, name: str, positions: int | None) -> None:
        """Notes that each element of weight `name` multiplies at `positions` places."""
        if positions is None:
            self.ledger.uncounted.append(self.path)
        else:
            key = (self.path, name)
            self.ledger.costs[key] = self.ledger.costs.get(key, 0) + positions

    def resize(self, key: str, atoms: np.ndarray, index: int | None = None) -> None:
        """Notes that `config[key]` (or `config[key][index]`) counts these channels.

        A dotted key goes into nested dicts: `layer.config.units`.
        """
        self.ledger.note(self.path, atoms)
        known = self.ledger.resizes.setdefault((self.path, key, index), atoms)
        if known is not atoms:
            self.ledger.unite(known, atoms, f"{self.path} has one size for all its calls")

    # What comes out.

    def output(self, atoms: np.ndarray, axis: int = -1, zero: Any = True) -> list[Channels]:
        """One output with these channels at `axis`."""
        axis %= len(self.shape)
        return [Channels(self.shape, axis, atoms, np.broadcast_to(zero, atoms.shape))]

    def same(self, x: Channels) -> list[Channels]:
        """One output with the channels of `x`: an elementwise layer with f(0) = 0."""
        if x.axis is None or x.from_end is None:
            return [Channels(self.shape)]
        return [x.reshaped(self.shape, x.from_end + len(self.shape))]


def positions(shape: tuple[int | None, ...], channel_axis: int) -> int | None:
    """How many places a shape has beside batch and channels; None if open."""
    axis = channel_axis % len(shape)
    sizes = [size for i, size in enumerate(shape) if i not in (0, axis)]
    return None if None in sizes else math.prod(s for s in sizes if s is not None)


def flatten(structure: Any) -> list[Any]:
    """Leaves of nested lists, tuples and dicts; a `Channels` is a leaf."""
    return tf.nest.flatten(structure)
