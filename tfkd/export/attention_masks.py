"""Attention masks that leave 8 bits to the scores.

Keras forbids a query to look at a place by subtracting 10⁹ from its score before the
softmax. In float that is exact. Quantized after training, the tensor of the scores gets
one range for all it has seen, [−10⁹, 10]: 256 codes that are four million apart, so
that every score is 0 and attention the same everywhere. What it takes is far less:
e^−20 is 2·10⁻⁹. So a model is converted with masks that subtract 20 more than the
scores themselves need, which changes no output by more than that.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from tfkd.export.named_function import NamedFunction
from tfkd.formats import litert
from tfkd.networks.layer_parts import parts

# A masked place weighs less than e^−20 times the best one that is not.
MARGIN = 20.0
# No score or feature is that large, but what a mask adds is.
_ENDLESS = 1e6
_BATCH = 32


class Moderated(NamedFunction):
    """A model in inference whose masks subtract `offsets` in place of 10⁹.

    Args:
        model: the model.
        offsets: id of a layer that masks scores → what it subtracts.
    """

    def __init__(self, model: Any, offsets: dict[int, float]):
        self._offsets = offsets
        super().__init__(model)

    def call(self, inputs: Any) -> Any:
        """The model's outputs; its layers are as they were when it returns."""

        def moderate(layer: Any, scores: Any, allowed: Any, axes: list[int]) -> Any:
            import tensorflow as tf

            # A query that may look at nothing looks at all alike, as after −10⁹.
            some = tf.reduce_any(allowed, axes, keepdims=True)
            offset = self._offsets[id(layer)] * (1.0 - tf.cast(allowed, scores.dtype))
            return scores * tf.cast(some, scores.dtype) - offset

        with _replaced(self.model, moderate, self._offsets):
            return super().call(inputs)


def moderated(graph: NamedFunction, examples: dict[str, np.ndarray]) -> NamedFunction:
    """The graph to convert: with moderate masks, if the model has masks that can be.

    Args:
        graph: of a float model.
        examples: {input name: (N, ...)}, which show how far its scores lie apart.
    """
    excess: dict[int, float] = {}

    def measure(layer: Any, scores: Any, allowed: Any, axes: list[int]) -> None:
        z, shown = np.broadcast_arrays(scores.numpy(), allowed.numpy())
        best, hidden = (np.where(chosen, z, -np.inf).max(tuple(axes)) for chosen in (shown, ~shown))
        both = np.isfinite(best) & np.isfinite(hidden)
        most = float((hidden - best)[both].max()) if both.any() else 0.0
        excess[id(layer)] = max(excess.get(id(layer), 0.0), most)

    if not _masking(graph.model):
        return graph
    with _replaced(graph.model, measure):
        for start in range(0, len(next(iter(examples.values()))), _BATCH):
            graph.call([examples[i.name][start : start + _BATCH] for i in graph.inputs])
    if not excess:
        return graph
    return Moderated(graph.model, {key: value + MARGIN for key, value in excess.items()})


def problems(path: str | os.PathLike[str]) -> list[str]:
    """What masks of −10⁹ did to an int8 file, and how to fix it; empty if nothing."""
    details = litert.open_interpreter(path, delegate=False).get_tensor_details()
    names = [row["name"] for row in details if 255 * row["quantization"][0] > _ENDLESS]
    if not names:
        return []
    return [
        f"the 8 bits of {len(names)} tensors ({names[0]!r} first) span numbers as large as those "
        "that attention masks add (−10⁹), and the scores beside them are lost. The masks of "
        "Keras's own attention and Softmax layers are moderated, others are not: let them add "
        "−30, or train with tfkd.quantization.quantize, or use mode='dynamic'"
    ]


def _masking(model: Any) -> list[tuple[Any, str]]:
    """The layers that mask scores, and the method of each that does."""
    import tf_keras as keras

    layers = keras.layers
    methods = {
        layers.Softmax: "call",
        layers.Attention: "_apply_scores",
        layers.AdditiveAttention: "_apply_scores",
    }
    return [(part, methods[type(part)]) for part in parts(model) if type(part) in methods]


@contextlib.contextmanager
def _replaced(model: Any, change: Any, only: Any = None) -> Iterator[None]:
    """Scores go through `change(layer, scores, allowed, axes)` where they are masked.

    If it returns None, they are masked as ever. The layers are as before afterwards.
    """
    found = [(part, name) for part, name in _masking(model) if only is None or id(part) in only]
    # One that a wrapper holds is found twice.
    found = list({id(part): (part, name) for part, name in found}.values())
    kept = [(part, name, vars(part).get(name)) for part, name in found]
    for part, name in found:
        wrap = _softmax if name == "call" else _apply_scores
        # Past Keras's own attribute tracking.
        vars(part)[name] = wrap(part, getattr(part, name), change)
    try:
        yield
    finally:
        for part, name, own in kept:
            if own is None:
                vars(part).pop(name)
            else:
                vars(part)[name] = own


def _softmax(layer: Any, original: Any, change: Any) -> Any:
    import tensorflow as tf

    @functools.wraps(original)
    def call(inputs: Any, mask: Any = None) -> Any:
        if mask is None:
            return original(inputs)
        limit = 0.5 if layer.robust_masking else 1.0 - 1e-6
        allowed = mask if mask.dtype == tf.bool else tf.cast(mask, inputs.dtype) > limit
        axes = list(layer.axis) if isinstance(layer.axis, (tuple, list)) else [layer.axis]
        changed = change(layer, inputs, allowed, axes)
        return original(inputs, mask) if changed is None else original(changed)

    return tf.autograph.experimental.do_not_convert(call)


def _apply_scores(layer: Any, original: Any, change: Any) -> Any:
    import tensorflow as tf

    @functools.wraps(original)
    def apply(scores: Any, value: Any, scores_mask: Any = None, training: Any = None) -> Any:
        if scores_mask is not None:
            changed = change(layer, scores, tf.cast(scores_mask, tf.bool), [-1])
            if changed is not None:
                scores, scores_mask = changed, None
        return original(scores, value, scores_mask, training)

    return tf.autograph.experimental.do_not_convert(apply)
