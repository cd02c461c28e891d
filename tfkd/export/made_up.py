"""Synthetic example inputs for a model, in the range that its first layers expect.

The first layers of a network reveal its input range: they rescale pixels, look up
embeddings or subtract a mean. Starting at each input, layers that only move values are
skipped, scales and offsets are accumulated, and the first layer with a known input range
ends the search.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from tfkd.example_inputs import OPEN_SIZES, Input
from tfkd.export.named_function import NamedFunction
from tfkd.networks import resources
from tfkd.networks.call_graph import Call, CallGraph, Ref, graph_of
from tfkd.networks.layer_parts import parts

COUNT = 8  # Enough to see whether outputs depend on the input, at little cost.
# Upper limit of the numbers in all examples together; there are two examples at least.
_MOST = 2_000_000
# Layers that move, drop or average values but keep their range.
_PASSES = re.compile(
    r"InputLayer|.*Dropout.*|Gaussian.*|Masking|Reshape|Flatten|Permute|RepeatVector|ZeroPadding.*"
    r"|Cropping.*|UpSampling.*|MaxPooling.*|AveragePooling.*|Resizing|CenterCrop|Random.*"
    r"|ActivityRegularization|SlicingOpLambda"
)
# Words for texts of which nothing is known: they can be read as numbers, too.
_DIGITS = tuple(map(str, range(100)))
_MOST_WORDS = 1000
_WORDS_A_TEXT = 4
_PASSING = ("cast", "identity", "expand_dims", "squeeze", "reshape", "transpose", "stop_gradient")
_LOOKUPS = ("gather", "embedding_lookup")


@dataclasses.dataclass(frozen=True)
class ValueRange:
    """The range [low, high] of an input's values, which are integers if `whole`.

    The values of a text input are `count` of the `words` each, with spaces between them.
    """

    low: Any = 0
    high: Any = 0
    whole: bool = False
    words: tuple[str, ...] = ()
    count: int = 1


@dataclasses.dataclass(frozen=True)
class _Affine:
    """A tensor as an affine function of the input: scale · input + offset."""

    scale: Any = 1.0
    offset: Any = 0.0

    def then(self, scale: Any, offset: Any) -> _Affine:
        """Composition with a further scale and offset."""
        return _Affine(self.scale * scale, self.offset * scale + offset)

    def invert(self, found: ValueRange) -> ValueRange:
        """The input range for which the tensor has the range `found`."""
        if found.words:
            return found
        ends = [(np.asarray(e) - self.offset) / self.scale for e in (found.low, found.high)]
        return ValueRange(np.minimum(*ends), np.maximum(*ends), found.whole)

    def guess(self) -> ValueRange | None:
        """The input range if no later layer tells more; None if there was no scaling at all.

        The tensor is assumed to span [0, 1] after a scale alone, and a symmetric range
        after a negative offset: (x − 127.5) / 127.5 gives [−1, 1].
        """
        scale, offset = np.asarray(self.scale), np.asarray(self.offset)
        if not scale.all() or ((scale == 1).all() and (offset == 0).all()):
            return None
        low = np.where(offset > 0, offset - 1, offset)
        return self.invert(ValueRange(low, np.where(offset < 0, -offset, offset + 1)))


def made_up(graph: NamedFunction, size: int = OPEN_SIZES[0]) -> dict[str, np.ndarray]:
    """Makes synthetic inputs for a model; they are the same at every call.

    Args:
        graph: the model.
        size: value for open dimensions.

    Returns:
        Arrays (N, ...) of each input's dtype by name, with 8 examples, or fewer if they
        are large.

    Raises:
        ValueError: if an input takes neither numbers nor booleans nor texts.

    Example:
        >>> import tf_keras as keras
        >>> pixels = keras.Sequential([keras.layers.Rescaling(1 / 255, input_shape=(2, 2, 3))])
        >>> (values,) = made_up(NamedFunction(pixels)).values()
        >>> values.shape, bool(values.min() >= 0), bool(100 < values.max() <= 255)
        ((8, 2, 2, 3), True, True)
    """
    rng = np.random.default_rng(0)
    shapes = {i.name: tuple(size if s < 0 else s for s in i.shape) for i in graph.inputs}
    numbers = max(1, sum(int(np.prod(shape)) for shape in shapes.values()))
    count = int(np.clip(_MOST // numbers, 2, COUNT))
    return {
        i.name: _values(i, (count, *shapes[i.name]), found, rng)
        for i, found in zip(graph.inputs, expected_ranges(graph), strict=True)
    }


def pixels(shape: tuple[int, ...]) -> np.ndarray:
    """Random uint8 images (8, height, width, channels), or fewer if they are large."""
    count = int(np.clip(_MOST // int(np.prod(shape)), 2, COUNT))
    one = Input("pixels", shape, np.dtype("uint8"))
    return _values(one, (count, *shape), ValueRange(0, 255), np.random.default_rng(0))


def _values(one: Input, shape: tuple[int, ...], found: ValueRange | None, rng: Any) -> np.ndarray:
    if one.dtype.kind == "b":
        values = rng.uniform(size=shape) < 0.75
        if len(shape) > 1 and shape[1] > 1:
            values[:, 0] = True  # It is probably a mask: leave one element unmasked.
        return values
    if one.dtype == object:
        words = np.array((found and found.words) or _DIGITS, object)
        rows = rng.choice(words, (int(np.prod(shape)), found.count if found else 1))
        return np.array([" ".join(row) for row in rows], object).reshape(shape)
    if one.dtype.kind not in "iuf":
        raise ValueError(f"input {one.name!r} takes {one.dtype}, which can't be made up")
    if found is None:
        return _spread(shape, rng).astype(one.dtype)
    low, high = _broadcast(found.low, shape, min), _broadcast(found.high, shape, max)
    if found.whole:
        return rng.integers(np.rint(low), np.rint(high) + 1, shape).astype(one.dtype)
    # Each example gets its own brightness, or global averages would be nearly equal.
    shares = 0.5 * (rng.uniform(size=shape) + _for_each(shape, rng.uniform))
    values = low + shares * (high - low)
    if one.dtype.kind in "iu":
        limits = np.iinfo(one.dtype)
        values = np.clip(np.rint(values), limits.min, limits.max)
    return values.astype(one.dtype)


def _spread(shape: tuple[int, ...], rng: Any) -> np.ndarray:
    """Normal numbers of mean 0 and variance 1; images have a random tint per channel."""
    if len(shape) < 3:
        return rng.normal(size=shape)
    # 0.6² + 0.8² = 1
    return 0.6 * rng.normal(size=shape) + 0.8 * _for_each(shape, rng.normal)


def _for_each(shape: tuple[int, ...], draw: Callable[..., np.ndarray]) -> np.ndarray:
    """Draws one number per example and channel, broadcastable to `shape`."""
    if len(shape) < 3:
        return draw(size=shape)
    return draw(size=(shape[0], *(1 for _ in shape[1:-1]), shape[-1]))


def _broadcast(end: Any, shape: tuple[int, ...], pick: Callable[..., Any]) -> Any:
    """An end of a range, broadcastable to `shape`; reduced to a scalar if it is not."""
    end = np.asarray(end, np.float64)
    try:
        np.broadcast_to(end, shape)
    except ValueError:
        return float(pick(end.ravel()))
    return end


def expected_ranges(graph: NamedFunction) -> list[ValueRange | None]:
    """The value range of each input, by the model's first layers; None if it is unknown."""
    calls = graph.calls
    if calls is not None and len(calls.model.inputs) == len(graph.inputs):
        found = [_follow(calls, calls.ref(tensor), _Affine()) for tensor in calls.model.inputs]
    else:
        found = [_chain(graph) if len(graph.inputs) == 1 else None for _ in graph.inputs]
    return [
        _of_type(one.dtype, graph) if known is None else known
        for one, known in zip(graph.inputs, found, strict=True)
    ]


def _of_type(dtype: np.dtype, graph: NamedFunction) -> ValueRange | None:
    """The range of a text or integer input about which nothing else is known."""
    if dtype.kind == "O":
        return ValueRange(words=tuple(resources.words(graph.model)[:_MOST_WORDS]))
    if dtype.kind not in "iu":
        return None
    if dtype.itemsize == 1:
        return ValueRange(np.iinfo(dtype).min, np.iinfo(dtype).max, True)
    return _vocabulary(graph.layers) or ValueRange(0, 1, True)


def _chain(graph: NamedFunction) -> ValueRange | None:
    """The input range of a subclassed model, if its layers run in the order of `layers`."""
    affine = _Affine()
    for layer in getattr(graph.model, "layers", ()):
        inner = graph_of(layer)
        if inner is not None:
            return _follow(inner, inner.ref(layer.inputs[0]), affine)
        linear, known = _layer(layer)
        if known is not None:
            return affine.invert(known)
        if linear is None:
            break
        affine = affine.then(*linear)
    return affine.guess()


def _follow(calls: CallGraph, ref: Ref, affine: _Affine) -> ValueRange | None:
    """The input range by the readers of a tensor; None if it is unknown."""
    readers = [calls.calls[key] for key in calls.readers[ref]]
    found = [one for call in readers if (one := _by_call(calls, call, ref, affine))]
    whole = [one for one in found if one.whole]
    if whole:  # If several tables read the input, indices must fit the smallest.
        return min(whole, key=lambda one: float(np.max(one.high)))
    return found[0] if found else affine.guess()


def _by_call(calls: CallGraph, call: Call, ref: Ref, affine: _Affine) -> ValueRange | None:
    """The input range by one reader of a tensor, or by the readers after it."""
    layer = call.layer
    symbolic = hasattr(layer, "symbol")
    inner = calls.nested.get(call.name)
    if inner is not None:
        found = _follow(inner, inner.ref(inner.model.inputs[call.inputs.index(ref)]), affine)
        if found is not None:
            return found
    linear, known = _operation(call, calls.tensors[ref]) if symbolic else _layer(layer)
    if known is not None:
        return affine.invert(known)
    if inner is not None:
        return None
    if linear is not None and len(call.outputs) == 1:
        return _follow(calls, call.outputs[0], affine.then(*linear))
    return affine.guess()


_SAME = (1.0, 0.0)
_Linear = tuple[Any, Any]


def _layer(layer: Any) -> tuple[_Linear | None, ValueRange | None]:
    """(scale and offset of a layer that is affine, input range that a layer expects)."""
    if type(layer).__name__ in ("TimeDistributed", "Bidirectional"):
        layer = layer.layer
    kind = type(layer).__name__
    if kind == "Rescaling":
        return (np.asarray(layer.scale, float), np.asarray(layer.offset, float)), None
    if _PASSES.fullmatch(kind):
        return _SAME, None
    return None, _KNOWN[kind](layer) if kind in _KNOWN else _vocabulary(parts(layer))


def _normal(layer: Any) -> ValueRange | None:
    """The mean that a Normalization subtracts, plus and minus two standard deviations."""
    if getattr(layer, "invert", False) or getattr(layer, "mean", None) is None:
        return None
    mean, spread = np.asarray(layer.mean), np.sqrt(np.asarray(layer.variance))
    return ValueRange(mean - 2 * spread, mean + 2 * spread)


def _batch_normal(layer: Any) -> ValueRange:
    """The moving mean plus and minus two standard deviations."""
    axes = [layer.axis] if isinstance(layer.axis, int) else list(layer.axis)
    shape = np.ones(layer.input_spec.ndim or 1 - min(axes), int)
    mean, spread = layer.moving_mean.numpy(), np.sqrt(layer.moving_variance.numpy())
    shape[axes] = mean.shape
    mean, spread = mean.reshape(shape), spread.reshape(shape)
    return ValueRange(mean - 2 * spread, mean + 2 * spread)


def _words(layer: Any) -> ValueRange | None:
    """The words of a vocabulary, or its indices if the layer maps these to words."""
    if getattr(layer, "invert", False):
        return ValueRange(0, layer.vocabulary_size() - 1, True)
    words = tuple(map(str, layer.get_vocabulary(include_special_tokens=False)[:_MOST_WORDS]))
    several = layer.get_config().get("split") is not None  # of a TextVectorization
    return ValueRange(words=words, count=_WORDS_A_TEXT if several else 1) if words else None


def _numbers(layer: Any) -> ValueRange | None:
    """From the smallest to the largest integer of a vocabulary, or of its indices."""
    if layer.invert:
        return ValueRange(0, layer.vocabulary_size() - 1, True)
    known = [int(v) for v in layer.get_vocabulary(include_special_tokens=False)]
    return ValueRange(min(known), max(known), True) if known else None


def _bins(layer: Any) -> ValueRange | None:
    edges = layer.bin_boundaries
    return ValueRange(min(edges) - 1.0, max(edges) + 1.0) if edges else None


def _vocabulary(layers: Iterable[Any]) -> ValueRange | None:
    """The valid indices of the smallest Embedding among some layers; None without one."""
    sizes = [layer.input_dim for layer in layers if type(layer).__name__ == "Embedding"]
    return ValueRange(0, min(sizes) - 1, True) if sizes else None


_KNOWN: dict[str, Callable[[Any], ValueRange | None]] = {
    "Normalization": _normal,
    "BatchNormalization": _batch_normal,
    "SyncBatchNormalization": _batch_normal,
    "Embedding": lambda one: ValueRange(int(one.mask_zero), one.input_dim - 1, True),
    "CategoryEncoding": lambda one: ValueRange(0, one.num_tokens - 1, True),
    "Hashing": lambda one: ValueRange(0, 999, True),
    "IntegerLookup": _numbers,
    "StringLookup": _words,
    "TextVectorization": _words,
    "Discretization": _bins,
    "FixedQuantize": lambda one: ValueRange(one.low, one.high),
}


def _operation(call: Call, tensor: Any) -> tuple[_Linear | None, ValueRange | None]:
    """As `_layer`, for a TensorFlow operation that was called on a symbolic Keras tensor."""
    name = call.layer.symbol.rsplit(".", 1)[-1]
    if name in _PASSING or type(call.layer).__name__ == "SlicingOpLambda":
        return _SAME, None
    values = [*call.args, *call.kwargs.values()]
    first = bool(values) and values[0] is tensor
    others = (_constant(value) for value in values if value is not tensor)
    other = next((constant for constant in others if constant is not None), None)
    if other is None:
        return None, None
    if name in _LOOKUPS and not first:
        return None, ValueRange(0, len(other) - 1, True)
    if name == "one_hot" and first:
        return None, ValueRange(0, int(other) - 1, True)
    if name in ("add", "bias_add"):
        return (1.0, other), None
    if name == "multiply":
        return (other, 0.0), None
    if name == "subtract" and first:
        return (1.0, -other), None
    if name in ("truediv", "divide") and first:
        return (1 / other, 0.0), None
    return None, None


def _constant(value: Any) -> np.ndarray | None:
    """A numeric argument as a float array; None for everything else."""
    if isinstance(value, (bool, str)) or value is None or hasattr(value, "node"):
        return None
    try:
        found = np.asarray(value)
    except (TypeError, ValueError, NotImplementedError):
        return None
    return found.astype(float) if found.dtype.kind in "iuf" else None
