"""Freezes layers in a stage, by name or pattern."""

from __future__ import annotations

import tf_keras as keras

from tfkd import checks
from tfkd.networks.paths import Entries, leaves, matching


def trained(model: keras.Model) -> dict[str, bool]:
    """path → whether the layer is currently trainable."""
    return {path: layer.trainable for path, layer in leaves(model)}


def freeze(model: keras.Model, patterns: Entries, otherwise: dict[str, bool]) -> None:
    """Freezes the layers that match an entry, and restores the others.

    Args:
        model: the student.
        patterns: one or several entries as in `networks.paths`: names, paths
            ("backbone/conv1"), nested models, patterns, or layers.
        otherwise: path → trainable, as `trained` returned for the original student.

    Raises:
        ValueError: if an entry matches no layer, or no trainable weight is left.
    """
    found = dict(leaves(model))
    expected = "names of layers of the student"
    frozen = set(matching("freeze", patterns, found, model, expected))
    for path, layer in found.items():
        layer.trainable = False if path in frozen else otherwise.get(path, True)
    getattr(model, "keep_frozen", lambda: None)()  # a quantized model's batch normalizations
    if model.weights and not model.trainable_weights:
        raise checks.value_error("freeze", "something left to train", patterns)
