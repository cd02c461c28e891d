"""What was chosen to stay of a model's blocks, and why."""

from __future__ import annotations

import dataclasses

from tfkd.results import Grid, Result


@dataclasses.dataclass(frozen=True)
class LayerChoice(Result):
    """Which units of a model stay and which go: what `choose_layers` returns.

    `cut_layers(model, drop=choice)` cuts it, and so does `keep=choice`: both leave
    blocks alone that belong to no unit. `print(choice)` says why.

    Attributes:
        keep: units that stay, in the order of the data.
        drop: units that go, the first to go first.
        scores: unit → how much it matters; empty for "position".
        by: "position", "similarity" or "damage".
        units: unit → names of its blocks (`find_blocks`), in the order of the data.
        meaning: what a score is, in words.
    """

    keep: tuple[str, ...]
    drop: tuple[str, ...]
    scores: dict[str, float]
    by: str
    units: dict[str, tuple[str, ...]]
    meaning: str = ""

    @property
    def dropped_blocks(self) -> tuple[str, ...]:
        """Names of the blocks that go, in the order of the data."""
        gone = set(self.drop)
        return tuple(
            block for unit, blocks in self.units.items() if unit in gone for block in blocks
        )

    def parts(self) -> list[Grid | str]:
        """Each unit, its blocks, its score, and what becomes of it."""
        place = {unit: f"goes, {number}." for number, unit in enumerate(self.drop, start=1)}
        rows = []
        for unit, blocks in self.units.items():
            shown = ", ".join(blocks) if len(blocks) < 4 else f"{blocks[0]} … {blocks[-1]}"
            rows.append((unit, shown, self.scores.get(unit), place.get(unit, "stays")))
        said = f"{len(self.keep)} of {len(self.units)} units stay, by {self.by}."
        table = Grid(("unit", "blocks", "score", ""), rows, {"score": ".4g"}, left=(0, 1, 3))
        return [said, table, *([f"score: {self.meaning}"] if self.meaning else [])]
