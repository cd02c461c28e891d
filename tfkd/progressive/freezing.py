"""Layers that are not trained in a stage, by name or pattern."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tfkd import checks
from tfkd.networks.paths import leaves, matches


def trained(model: Any) -> dict[str, bool]:
    """path → whether the layer is trained now."""
    return {path: layer.trainable for path, layer in leaves(model)}


def freeze(model: Any, patterns: Sequence[str], otherwise: dict[str, bool]) -> None:
    """Freezes the layers that a pattern fits, and puts the others back.

    Args:
        model: the student.
        patterns: names, paths ("backbone/conv1"), nested models, or patterns.
        otherwise: what `trained` said of the student as it was given.

    Raises:
        ValueError: for a pattern that fits no layer, or if nothing is left to train.
    """
    found = list(leaves(model))
    for pattern in patterns:
        if not any(matches(path, pattern) for path, _ in found):
            paths = [path for path, _ in found]
            mend = checks.near(pattern, paths) or f"There are: {', '.join(paths[:12])}."
            raise checks.value_error("freeze", "names of layers of the student", pattern, mend)
    for path, layer in found:
        frozen = any(matches(path, pattern) for pattern in patterns)
        layer.trainable = False if frozen else otherwise.get(path, True)
    getattr(model, "keep_frozen", lambda: None)()  # a quantized model's batch normalizations
    if model.weights and not model.trainable_weights:
        raise checks.value_error("freeze", "something left to train", list(patterns))
