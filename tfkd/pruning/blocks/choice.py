"""`LayerChoice`: the blocks selected by depth pruning, with their scores."""

from __future__ import annotations

import dataclasses

from tfkd.results import Grid, Result


@dataclasses.dataclass(frozen=True)
class LayerChoice(Result):
    """Which candidates of a model to keep and which to drop; the result of `choose_layers`.

    A candidate is one block, or several blocks that are kept or dropped together.
    `cut_layers(model, drop=choice)` and `cut_layers(model, keep=choice)` both remove the
    dropped blocks, and keep blocks that belong to no candidate. `print(choice)` shows the
    scores.

    Attributes:
        keep: candidates to keep, in the order of the data flow.
        drop: candidates to drop, in the order in which they were chosen.
        scores: candidate → importance score; empty for "position".
        by: "position", "similarity" or "damage".
        candidates: candidate → names of its blocks (see `find_blocks`), in the order of
            the data flow.
        meaning: description of the score.
    """

    keep: tuple[str, ...]
    drop: tuple[str, ...]
    scores: dict[str, float]
    by: str
    candidates: dict[str, tuple[str, ...]]
    meaning: str = ""

    @property
    def dropped_blocks(self) -> tuple[str, ...]:
        """Names of the blocks to drop, in the order of the data flow."""
        dropped = [blocks for name, blocks in self.candidates.items() if name in self.drop]
        return tuple(block for blocks in dropped for block in blocks)

    def parts(self) -> list[Grid | str]:
        """A table of the candidates: blocks, score, and whether each is kept or dropped."""
        place = {name: f"dropped, {number}." for number, name in enumerate(self.drop, start=1)}
        rows = []
        for name, blocks in self.candidates.items():
            shown = ", ".join(blocks) if len(blocks) < 4 else f"{blocks[0]} … {blocks[-1]}"
            rows.append((name, shown, self.scores.get(name), place.get(name, "kept")))
        summary = f"{len(self.keep)} of {len(self.candidates)} candidates kept, by {self.by}."
        table = Grid(("candidate", "blocks", "score", ""), rows, {"score": ".4g"}, left=(0, 1, 3))
        return [summary, table, *([f"score: {self.meaning}"] if self.meaning else [])]
