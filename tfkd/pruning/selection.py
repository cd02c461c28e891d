"""`Selection`: the units (channels) to prune from each group, an immutable value."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from tfkd import checks
from tfkd.pruning.graph import Graph
from tfkd.results import Grid, Result


@dataclasses.dataclass(frozen=True)
class Selection(Result):
    """Units to remove, by group; immutable and serializable as JSON.

    Attributes:
        removed: group name → sorted positions within that group, from 0.
        fingerprint: hash of the layer names and weight shapes of the model that it was
            made for, so that it can't be applied to another model.
        pending: why it is not final yet, while a filter decay is still running; otherwise
            "". Neither compared nor part of `to_dict`.

    Example:
        >>> from tfkd.pruning import Selection
        >>> chosen = Selection({"conv1": (0, 3)}, "f00d")
        >>> Selection.from_dict(chosen.to_dict()) == chosen
        True
    """

    removed: Mapping[str, tuple[int, ...]]
    fingerprint: str
    pending: str = dataclasses.field(default="", compare=False, repr=False)

    def __post_init__(self) -> None:
        checks.instance("removed", self.removed, Mapping, "a mapping: group name → positions")
        checks.instance("fingerprint", self.fingerprint, str, "a fingerprint of a model")
        clean = {
            name: tuple(sorted({int(i) for i in positions}))
            for name, positions in self.removed.items()
        }
        object.__setattr__(self, "removed", clean)

    @property
    def count(self) -> int:
        """Total number of units removed."""
        return sum(len(positions) for positions in self.removed.values())

    def units(self, graph: Graph) -> np.ndarray:
        """Returns a bool array (U,), True for the units of `graph` to remove.

        Raises:
            ValueError: if the selection was made for another model, names a group or a
                position that does not exist, or removes all units of a group.
        """
        if self.fingerprint != graph.fingerprint:
            raise ValueError(
                "`selection`: expected one that was made for this model, received one for a model "
                "with other layers or shapes. Make it again with tfkd.pruning.plan and select."
            )
        removed = np.zeros(graph.units, bool)
        for name, positions in self.removed.items():
            try:
                group = graph.group(name)
            except KeyError:
                names = [g.name for g in graph.groups]
                raise checks.value_error("selection", f"groups among {names}", name) from None
            if positions and not 0 <= positions[0] <= positions[-1] < group.size:
                expected = f"positions in 0 … {group.size - 1} for group {name!r}"
                raise checks.value_error("selection", expected, positions)
            if len(positions) == group.size:
                raise ValueError(
                    f"`selection`: expected at least one of the {group.size} channels of group "
                    f"{name!r} to stay, received a selection that removes them all. Leave one out."
                )
            removed[group.units[list(positions)]] = True
        return removed

    @classmethod
    def from_units(cls, graph: Graph, removed: np.ndarray) -> Selection:
        """The selection of the units for which the bool array (U,) is True."""
        return cls(
            {g.name: tuple(np.flatnonzero(removed[g.units]).tolist()) for g in graph.groups},
            graph.fingerprint,
        )

    def parts(self) -> list[Grid]:
        """Number and positions of the units removed from each group."""
        rows = [(name, len(gone), ", ".join(map(str, gone))) for name, gone in self.removed.items()]
        return [Grid(("group", "removed", "positions"), rows, left=(0, 2))]

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Selection:
        """Restores a selection from the result of `to_dict`.

        Raises:
            ValueError: if `data` has other keys.
        """
        if not isinstance(data, Mapping) or set(data) != {"removed", "fingerprint"}:
            raise checks.value_error("data", "what Selection.to_dict returns", data)
        return cls({k: tuple(v) for k, v in data["removed"].items()}, data["fingerprint"])
