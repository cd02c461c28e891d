"""All pictures of a table, each with the sentence that stands for it."""

from __future__ import annotations

import pathlib
import re
from typing import Any

from tfkd.report.plots import training_curves
from tfkd.report.trade_offs import accuracy_latency, accuracy_size


def draw(table: Any, folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """Draws what `table` has numbers for.

    Args:
        table: a `Table`.
        folder: where the PNGs go.

    Returns:
        What a picture shows → its file: `accuracy_latency.png`, `accuracy_size.png`
        (by the name of the table's score), and one for each of its curves ("accuracy (%)":
        `accuracy_curves.png`).

    Raises:
        ImportError: if there is something to draw and no matplotlib.
    """
    found = {}
    measure = table.measure
    scored = [row for row in table.rows if getattr(row, measure.key) is not None]
    if any(row.latency is not None for row in scored):
        path = accuracy_latency(table, folder / f"{measure.key}_latency.png")
        found[f"{measure.title} against latency"] = path
    if any(row.size for row in scored):
        path = accuracy_size(table, folder / f"{measure.key}_size.png")
        found[f"{measure.title} against size"] = path
    for quantity, models in table.curves.items():
        word = re.sub(r"\W+", "_", quantity.partition("(")[0].strip())
        path = training_curves(models, folder / f"{word}_curves.png", quantity)
        found[f"{quantity} over the epochs"] = path
    return found
