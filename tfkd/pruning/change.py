"""Change of a model's outputs when filters are removed, before any training."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfkd.pruning.graph import Graph
from tfkd.pruning.masking import masked
from tfkd.results import Result


@dataclasses.dataclass(frozen=True)
class OutputChange(Result):
    """How far the outputs of a pruned, untrained model are from those of the model as it was.

    Attributes:
        examples: number of examples that were compared.
        agreement: fraction of the examples, or of their positions, in which the largest
            element of an output (..., C) is the same: the same class. Of several outputs the
            lowest; None if no output has more than one element in its last axis.
        error: mean absolute difference as a fraction of the output's range; of several
            outputs the highest.
    """

    examples: int
    agreement: float | None
    error: float

    def parts(self) -> list[str]:
        """The change in one sentence."""
        far = f"a mean difference of {100 * self.error:.1f} % of the outputs' range"
        if self.agreement is None:
            return [f"{far} from the unpruned model on {self.examples:,} examples before training"]
        return [
            f"agreement with the unpruned model on {self.examples:,} examples: "
            f"{100 * self.agreement:.0f} % before training ({far})"
        ]


def output_change(graph: Graph, removed: np.ndarray, batches: Sequence[Any]) -> OutputChange:
    """Measures the change of the outputs by masking units; restores the model.

    Args:
        graph: graph of the model.
        removed: bool array (U,), True for removed units.
        batches: at least one batch of inputs, in the structure that the model takes.
    """
    before, after = (_outputs(graph, units, batches) for units in (removed & False, removed))
    rows = [_compared(one, other) for one, other in zip(before, after, strict=True)]
    agreements = [agreement for agreement, _ in rows if agreement is not None]
    errors = [error for _, error in rows]
    return OutputChange(len(before[0]), min(agreements, default=None), max(errors))


def _outputs(graph: Graph, removed: np.ndarray, batches: Sequence[Any]) -> list[np.ndarray]:
    """All outputs (N, ...) of the model without some units."""
    model = graph.model
    with masked(graph, removed):
        model.reset_states()
        found = [tf.nest.flatten(model(batch, training=False)) for batch in batches]
        model.reset_states()
    arrays = ([np.asarray(one, np.float64) for one in outputs] for outputs in found)
    return [np.concatenate(parts) for parts in zip(*arrays, strict=True)]


def _compared(before: np.ndarray, after: np.ndarray) -> tuple[float | None, float]:
    """(agreement or None, error) of one output."""
    error = float(np.abs(after - before).mean() / (np.ptp(before) or 1.0))
    if before.ndim < 2 or before.shape[-1] < 2:
        return None, error
    return float((before.argmax(-1) == after.argmax(-1)).mean()), error
