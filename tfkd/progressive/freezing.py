"""Layers that are not trained in a stage, by name or pattern."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Sequence
from typing import Any

from tfkd import checks
from tfkd.teachers.taps import WRAPPER_PREFIXES


def leaves(model: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(path, layer) of every layer that holds no others; wrappers go by what they wrap."""
    for layer in model.layers:
        name = layer.name
        for wrapper in WRAPPER_PREFIXES:
            name = name.removeprefix(wrapper)
        if getattr(layer, "layers", None):
            yield from leaves(layer, f"{prefix}{name}/")
        else:
            yield prefix + name, layer


def _fits(path: str, pattern: str) -> bool:
    parts = path.split("/")
    wholes = ["/".join(parts[: n + 1]) for n in range(len(parts))]
    return any(fnmatch.fnmatchcase(text, pattern) for text in (*wholes, parts[-1]))


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
        if not any(_fits(path, pattern) for path, _ in found):
            paths = [path for path, _ in found]
            mend = checks.near(pattern, paths) or f"There are: {', '.join(paths[:12])}."
            raise checks.value_error("freeze", "names of layers of the student", pattern, mend)
    for path, layer in found:
        frozen = any(_fits(path, pattern) for pattern in patterns)
        layer.trainable = False if frozen else otherwise.get(path, True)
    getattr(model, "keep_frozen", lambda: None)()  # a quantized model's batch normalizations
    if model.weights and not model.trainable_weights:
        raise checks.value_error("freeze", "something left to train", list(patterns))
