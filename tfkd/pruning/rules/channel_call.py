"""`ChannelCall`: one layer call as a pruning rule sees it, with the channels it couples."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfkd.networks.paths import walk
from tfkd.pruning.channel_ledger import FIXED, Channels, Ledger


class ChannelCall:
    """One call of a layer in the analysed model.

    A rule reads the inputs, records which axis of which weight belongs to which channels,
    and returns the channels of the outputs.

    Attributes:
        layer: the layer; None for the input of a nested model.
        path: path of the layer in the model.
        args, kwargs: the arguments of the call, with `Channels` in place of tensors.
        inputs: the `Channels` of all tensors among the arguments, in order.
        shapes: shapes of the outputs, batch axis included.
    """

    def __init__(
        self,
        ledger: Ledger,
        layer: Any,
        path: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        shapes: Iterable[Iterable[int | None]],
    ):
        self.ledger, self.layer, self.path = ledger, layer, path
        self.args, self.kwargs = args, kwargs
        self.inputs = [x for x in flatten((args, kwargs)) if isinstance(x, Channels)]
        self.shapes = [tuple(shape) for shape in shapes]

    @property
    def input(self) -> Channels:
        """The first input."""
        return self.inputs[0]

    @property
    def shape(self) -> tuple[int | None, ...]:
        """Shape of the first output, batch axis included."""
        return self.shapes[0]

    @property
    def width(self) -> int:
        """Size of the last axis of the first output."""
        return int(self.shape[-1] or 0)

    # Channels of the inputs.

    def at(self, x: Channels, axis: int) -> np.ndarray:
        """The atoms of `x` along `axis`; FIXED if its channels are on another axis."""
        axis %= len(x.shape)
        if x.axis == axis:
            return x.atoms
        self.freeze(x, f"{self.path} works along another axis than the channels")
        size = x.shape[axis]
        return np.full(0 if size is None else size, FIXED)

    def mix(self, x: Channels, axis: int) -> np.ndarray:
        """`at` for a layer that sums over channels; freezes those not zero when masked."""
        atoms = self.at(x, axis)
        if x.axis is not None and not x.zero.all():
            self.ledger.freeze(x.atoms[~x.zero], f"not zero where {self.path} mixes channels")
        return atoms

    def freeze(self, x: Channels, reason: str) -> None:
        """Excludes all channels of `x` from pruning; the plan reports the reason."""
        self.ledger.freeze(x.atoms, reason)

    def freeze_all(self, reason: str) -> list[Channels]:
        """Freezes the channels of all inputs; returns outputs without tracked channels."""
        for x in self.inputs:
            self.freeze(x, reason)
        return [Channels(shape) for shape in self.shapes]

    def hide(self, inner: Any, reason: str) -> None:
        """Reports the channels of the layers in `inner`, which are not analysed, as frozen."""
        for path, layer in walk(inner, f"{self.path}/"):
            count = getattr(layer, "filters", None) or getattr(layer, "units", None)
            if isinstance(count, int):
                self.ledger.hidden[path] = (count, reason)

    # Weights and config of the layer.

    def weight(
        self, name: str, axis: int, atoms: np.ndarray, zeroed: bool = False, scored: bool = False
    ) -> None:
        """Records the channels that own the slices of a weight along one axis.

        Args:
            name: attribute of the layer, such as "kernel".
            axis: axis of the weight, from 0.
            atoms: int array, one atom for each index along the axis.
            zeroed: True if masking a channel zeroes its slice.
            scored: True for filters from which importance scores are computed.
        """
        self.ledger.own((self.path, name, axis), atoms, zeroed, scored)

    def filters(self, name: str, axis: int, count: int) -> np.ndarray:
        """New channels produced by `axis` of weight `name`, the same for all calls."""
        known = self.ledger.axes.get((self.path, name, axis))
        if known is not None:
            return known[0]
        atoms = self.ledger.new(count)
        self.ledger.own((self.path, name, axis), atoms, zeroed=True, scored=True)
        return atoms

    def cost(self, name: str, positions: int | None) -> None:
        """Records that each element of weight `name` is used at `positions` positions.

        None: the number is unknown, and the layer's cost is traced instead.
        """
        if positions is None:
            self.ledger.uncounted.append(self.path)
        else:
            key = (self.path, name)
            self.ledger.costs[key] = self.ledger.costs.get(key, 0) + positions

    def resize(self, key: str, atoms: np.ndarray, index: int | None = None) -> None:
        """Records that `config[key]` (or `config[key][index]`) counts these channels.

        Dots in the key separate the keys of nested dicts: `layer.config.units`.
        """
        self.ledger.note(self.path, atoms)
        known = self.ledger.resizes.setdefault((self.path, key, index), atoms)
        if known is not atoms:
            self.ledger.unite(known, atoms, f"{self.path} has the same size in all its calls")

    # Channels of the outputs.

    def output(
        self, atoms: np.ndarray, axis: int = -1, zero: np.ndarray | bool = True
    ) -> list[Channels]:
        """A single output with these channels on `axis`."""
        axis %= len(self.shape)
        return [Channels(self.shape, axis, atoms, np.broadcast_to(zero, atoms.shape))]

    def same(self, x: Channels) -> list[Channels]:
        """A single output with the channels of `x`, as of an elementwise f with f(0) = 0."""
        if x.axis is None or x.from_end is None:
            return [Channels(self.shape)]
        return [x.reshaped(self.shape, x.from_end + len(self.shape))]


def positions(shape: tuple[int | None, ...], channel_axis: int) -> int | None:
    """Number of spatial positions: product of all sizes but batch and channels; None if open."""
    axis = channel_axis % len(shape)
    sizes = [size for i, size in enumerate(shape) if i not in (0, axis)]
    return None if None in sizes else math.prod(s for s in sizes if s is not None)


def flatten(structure: Any) -> list[Any]:
    """Leaves of nested lists, tuples and dicts; a `Channels` is a leaf."""
    return tf.nest.flatten(structure)
