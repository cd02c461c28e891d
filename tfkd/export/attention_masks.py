"""Attention masks with moderate offsets, so that int8 quantization preserves the scores.

Keras masks a key by subtracting 10⁹ from its attention score before the softmax. In
float that is exact. In post-training quantization, however, the tensor of scores gets
one range for all its values, [−10⁹, 10]: neighbouring codes are four million apart, all
scores round to 0, and attention becomes uniform. Far less suffices, since
e^−20 = 2·10⁻⁹. So the model is converted with masks that subtract 20 more than the
spread of the scores, which changes no attention weight by more than 2·10⁻⁹.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from tfkd.export.converter import quiet
from tfkd.export.named_function import NamedFunction
from tfkd.formats import litert
from tfkd.types import Path, Structure

_Change = Callable[[Any, Any, Any, list[int]], Any]
# A masked key's weight is at most e^−20 times that of the best unmasked key.
MARGIN = 20.0
# A range wider than this comes from a mask: scores and features are never so large.
_MASK_RANGE = 1e6
_BATCH = 32  # Examples per call while the scores are measured, which limits memory.


class Moderated(NamedFunction):
    """A model in inference mode whose masks subtract `offsets` in place of 10⁹.

    Args:
        model: the model.
        offsets: what a layer subtracts from masked scores, by the layer's id.
    """

    def __init__(self, model: keras.Model, offsets: dict[int, float]):
        self._offsets = offsets
        super().__init__(model)

    def call(self, inputs: Sequence[tf.Tensor]) -> Structure:
        """The model's outputs; the layers are patched only while it runs."""

        def moderate(layer: Any, scores: Any, allowed: Any, axes: list[int]) -> Any:
            # A fully masked query attends to all keys uniformly, as after subtracting 10⁹.
            some = tf.reduce_any(allowed, axes, keepdims=True)
            offset = self._offsets[id(layer)] * (1.0 - tf.cast(allowed, scores.dtype))
            return scores * tf.cast(some, scores.dtype) - offset

        with _replaced(self.layers, moderate, self._offsets):
            return super().call(inputs)


def moderated(graph: NamedFunction, examples: dict[str, np.ndarray]) -> NamedFunction:
    """The function to convert: with moderate masks, if the model masks attention scores.

    Args:
        graph: a float model.
        examples: inputs (N, ...) by name, on which the spread of the scores is measured.
    """
    excess: dict[int, float] = {}

    def measure(layer: Any, scores: Any, allowed: Any, axes: list[int]) -> None:
        z, shown = np.broadcast_arrays(scores.numpy(), allowed.numpy())
        best, hidden = (np.where(chosen, z, -np.inf).max(tuple(axes)) for chosen in (shown, ~shown))
        both = np.isfinite(best) & np.isfinite(hidden)
        most = float((hidden - best)[both].max()) if both.any() else 0.0
        excess[id(layer)] = max(excess.get(id(layer), 0.0), most)

    if not _masking(graph.layers):
        return graph
    with quiet(), _replaced(graph.layers, measure):
        for start in range(0, len(next(iter(examples.values()))), _BATCH):
            graph.call([examples[i.name][start : start + _BATCH] for i in graph.inputs])
    if not excess:
        return graph
    return Moderated(graph.model, {key: value + MARGIN for key, value in excess.items()})


def problems(path: Path) -> list[str]:
    """Describes the damage that masks of −10⁹ did to an int8 file; empty if there is none."""
    details = litert.open_interpreter(path, delegate=False).get_tensor_details()
    names = [row["name"] for row in details if 255 * row["quantization"][0] > _MASK_RANGE]
    if not names:
        return []
    return [
        f"the 8-bit ranges of {len(names)} tensors ({names[0]!r} first) include the offsets of "
        "attention masks (−10⁹), so that the scores are lost in rounding. The masks of "
        "Keras's own attention and Softmax layers are moderated, others are not: let them add "
        "−30, or train with tfkd.quantization.quantize, or use mode='dynamic'"
    ]


def _masking(layers: Iterable[keras.layers.Layer]) -> list[tuple[keras.layers.Layer, str]]:
    """The layers that mask scores, each with the name of the method that does so."""
    methods = {
        keras.layers.Softmax: "call",
        keras.layers.Attention: "_apply_scores",
        keras.layers.AdditiveAttention: "_apply_scores",
    }
    return [(layer, methods[type(layer)]) for layer in layers if type(layer) in methods]


@contextlib.contextmanager
def _replaced(
    layers: Iterable[keras.layers.Layer], change: _Change, only: Container[int] | None = None
) -> Iterator[None]:
    """Replaces masking by `change(layer, scores, allowed, axes)`, which returns new scores.

    If it returns None, the scores are masked as usual. The layers are restored at the end.
    """
    found = [(layer, name) for layer, name in _masking(layers) if only is None or id(layer) in only]
    # A layer inside a wrapper is listed twice.
    found = list({id(layer): (layer, name) for layer, name in found}.values())
    kept = [(layer, name, vars(layer).get(name)) for layer, name in found]
    for layer, name in found:
        wrap = _softmax if name == "call" else _apply_scores
        # `vars` bypasses Keras's attribute tracking.
        vars(layer)[name] = wrap(layer, getattr(layer, name), change)
    try:
        yield
    finally:
        for layer, name, own in kept:
            if own is None:
                vars(layer).pop(name)
            else:
                vars(layer)[name] = own


def _softmax(layer: Any, original: Any, change: _Change) -> Any:
    @functools.wraps(original)
    def call(inputs: Any, mask: Any = None) -> Any:
        if mask is None:
            return original(inputs)
        # As in Keras: robust masking keeps masks above 0.5; otherwise anything below 1 is
        # pushed down by (1 − mask)·10⁹.
        limit = 0.5 if layer.robust_masking else 1.0 - 1e-6
        allowed = mask if mask.dtype == tf.bool else tf.cast(mask, inputs.dtype) > limit
        axes = list(layer.axis) if isinstance(layer.axis, (tuple, list)) else [layer.axis]
        changed = change(layer, inputs, allowed, axes)
        return original(inputs, mask) if changed is None else original(changed)

    return tf.autograph.experimental.do_not_convert(call)


def _apply_scores(layer: Any, original: Any, change: _Change) -> Any:
    @functools.wraps(original)
    def apply(scores: Any, value: Any, scores_mask: Any = None, training: Any = None) -> Any:
        if scores_mask is not None:
            changed = change(layer, scores, tf.cast(scores_mask, tf.bool), [-1])
            if changed is not None:
                scores, scores_mask = changed, None
        return original(scores, value, scores_mask, training)

    return tf.autograph.experimental.do_not_convert(apply)
