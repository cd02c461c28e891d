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
from tfkd.teachers import class_scores


@dataclasses.dataclass(frozen=True)
class OutputChange(Result):
    """How far the outputs of a pruned, untrained model are from those of the model as it was.

    Attributes:
        examples: number of examples that were compared.
        agreement: fraction of the examples, or of their positions, in which the largest
            element of an output (..., C) is the same: the same class. Of several outputs the
            lowest; None if none may hold class scores.
        error: mean absolute difference as a fraction of the output's range; of several
            outputs the highest.
        of_classes: whether the agreement is known to be one of class scores, by
            `tfkd.losses.declare_outputs`, the last layer, the loss that the model is
            compiled with, or values that are distributions.
    """

    examples: int
    agreement: float | None
    error: float
    of_classes: bool = True

    def parts(self) -> list[str]:
        """The change in one sentence."""
        far = f"a mean difference of {100 * self.error:.1f} % of the outputs' range"
        on = f"{self.examples:,} examples"
        if self.agreement is None or not self.of_classes:
            text = f"{far} from the unpruned model on {on} before training"
            if self.agreement is not None:
                text += f" (agreement {100 * self.agreement:.0f} %, if they are class scores)"
            return [text]
        return [
            f"agreement with the unpruned model on {on}: "
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
    kinds = class_scores.of_outputs(graph.model, [class_scores.of_values(one) for one in before])
    agreements = {}
    for place, (one, other, kind) in enumerate(zip(before, after, kinds, strict=True)):
        if one.ndim > 1 and one.shape[-1] > 1 and kind != class_scores.VALUES:
            agreements[place] = float((one.argmax(-1) == other.argmax(-1)).mean())
    known = all(kinds[place] == class_scores.CLASSES for place in agreements)
    error = max(map(_difference, before, after))
    return OutputChange(len(before[0]), min(agreements.values(), default=None), error, known)


def _outputs(graph: Graph, removed: np.ndarray, batches: Sequence[Any]) -> list[np.ndarray]:
    """All outputs (N, ...) of the model without some units."""
    model = graph.model
    with masked(graph, removed):
        model.reset_states()
        found = [tf.nest.flatten(model(batch, training=False)) for batch in batches]
        model.reset_states()
    arrays = ([np.asarray(one, np.float64) for one in outputs] for outputs in found)
    return [np.concatenate(parts) for parts in zip(*arrays, strict=True)]


def _difference(before: np.ndarray, after: np.ndarray) -> float:
    """Mean absolute difference of one output as a fraction of its range."""
    return float(np.abs(after - before).mean() / (np.ptp(before) or 1.0))
