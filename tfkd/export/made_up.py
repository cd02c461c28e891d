"""Example inputs made up for a model: in the range that its first layers expect.

A network that scales pixels, looks words up or subtracts a mean says with its first
layers what it is fed with. They are followed from each input on: what only moves
numbers is passed, what scales them is undone, and the first that knows a range ends it.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from tfkd.example_inputs import Input
from tfkd.export.named_function import NamedFunction
from tfkd.networks.call_graph import Call, CallGraph, Ref, graph_of
from tfkd.networks.layer_parts import parts

COUNT = 8
# For sizes that a model leaves open, in the order in which they are tried.
SIZES = (32, 128, 8, 1)
# More numbers than this in all, and there are fewer examples; but two at least.
_MOST = 2_000_000
_PASSES = re.compile(
    r"InputLayer|.*Dropout.*|Gaussian.*|Masking|Reshape|Flatten|Permute|RepeatVector|ZeroPadding.*"
    r"|Cropping.*|UpSampling.*|MaxPooling.*|AveragePooling.*|Resizing|CenterCrop|Random.*"
    r"|ActivityRegularization|SlicingOpLambda"
)
_PASSING = ("cast", "identity", "expand_dims", "squeeze", "reshape", "transpose", "stop_gradient")
_LOOKUPS = ("gather", "embedding_lookup")


@dataclasses.dataclass(frozen=True)
class Range:
    """What an input expects: numbers from `low` to `high`, or whole ones with `whole`."""

    low: Any
    high: Any
    whole: bool = False


@dataclasses.dataclass(frozen=True)
class _Way:
    """How a tensor comes from the input: scale · input + offset."""

    scale: Any = 1.0
    offset: Any = 0.0

    def then(self, scale: Any, offset: Any) -> _Way:
        return _Way(self.scale * scale, self.offset * scale + offset)

    def back(self, found: Range) -> Range:
        ends = [(np.asarray(e) - self.offset) / self.scale for e in (found.low, found.high)]
        return Range(np.minimum(*ends), np.maximum(*ends), found.whole)

    def end(self) -> Range | None:
        """What is expected where no layer says more: behind a scale 0 … 1; behind an
        offset below 0 as much above 0.
        """
        scale, offset = np.asarray(self.scale), np.asarray(self.offset)
        if not scale.all() or ((scale == 1).all() and (offset == 0).all()):
            return None
        low = np.where(offset > 0, offset - 1, offset)
        return self.back(Range(low, np.where(offset < 0, -offset, offset + 1)))


def made_up(graph: NamedFunction, size: int = SIZES[0]) -> dict[str, np.ndarray]:
    """Makes inputs for a model, the same at every call.

    Args:
        graph: the model.
        size: of dimensions that it leaves open.

    Returns:
        {input name: (N, ...) of the input's dtype}, 8 examples, or fewer of large ones.

    Raises:
        ValueError: if an input takes neither numbers nor truth values.

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
    ranges = expected_ranges(graph)
    return {
        i.name: _values(i, (count, *shapes[i.name]), found, rng)
        for i, found in zip(graph.inputs, ranges, strict=True)
    }


def pixels(shape: tuple[int, ...]) -> np.ndarray:
    """Images (8, height, width, channels) of uint8, or fewer of large ones."""
    count = int(np.clip(_MOST // int(np.prod(shape)), 2, COUNT))
    one = Input("pixels", shape, np.dtype("uint8"))
    return _values(one, (count, *shape), Range(0, 255), np.random.default_rng(0))


def _values(one: Input, shape: tuple[int, ...], found: Range | None, rng: Any) -> np.ndarray:
    if one.dtype.kind == "b":
        values = rng.uniform(size=shape) < 0.75
        if len(shape) > 1 and shape[1] > 1:
            values[:, 0] = True  # of a mask: there is always something to look at
        return values
    if one.dtype.kind not in "iuf":
        kind = "strings" if one.dtype.kind in "OSU" else one.dtype
        raise ValueError(f"input {one.name!r} takes {kind}, which can't be made up")
    if found is None:
        return _spread(shape, rng).astype(one.dtype)
    low, high = _broadcast(found.low, shape, min), _broadcast(found.high, shape, max)
    if found.whole:
        return rng.integers(np.rint(low), np.rint(high) + 1, shape).astype(one.dtype)
    # Each example has its own brightness, so that what a network averages differs too.
    shares = 0.5 * (rng.uniform(size=shape) + _for_each(shape, rng.uniform))
    values = low + shares * (high - low)
    if one.dtype.kind in "iu":
        limits = np.iinfo(one.dtype)
        values = np.clip(np.rint(values), limits.min, limits.max)
    return values.astype(one.dtype)


def _spread(shape: tuple[int, ...], rng: Any) -> np.ndarray:
    """Normal numbers of mean 0 and variance 1; of images each has its own tint."""
    if len(shape) < 3:
        return rng.normal(size=shape)
    return 0.6 * rng.normal(size=shape) + 0.8 * _for_each(shape, rng.normal)


def _for_each(shape: tuple[int, ...], draw: Callable[..., np.ndarray]) -> np.ndarray:
    """A number for each example and channel."""
    if len(shape) < 3:
        return draw(size=shape)
    return draw(size=(shape[0], *(1 for _ in shape[1:-1]), shape[-1]))


def _broadcast(end: Any, shape: tuple[int, ...], pick: Callable[..., Any]) -> Any:
    """An end of a range for values of this shape; one for all where it does not fit."""
    end = np.asarray(end, np.float64)
    try:
        np.broadcast_to(end, shape)
    except ValueError:
        return float(pick(end.ravel()))
    return end


def expected_ranges(graph: NamedFunction) -> list[Range | None]:
    """For each input of a model what its first layers expect; None: they don't say."""
    model = graph.model
    calls = graph_of(model)
    if calls is not None and len(model.inputs) == len(graph.inputs):
        found = [_follow(calls, calls.ref(tensor), _Way()) for tensor in model.inputs]
    else:
        found = [_chain(model) if len(graph.inputs) == 1 else None for _ in graph.inputs]
    return [
        _of_type(one.dtype, model) if known is None else known
        for one, known in zip(graph.inputs, found, strict=True)
    ]


def _of_type(dtype: np.dtype, model: Any) -> Range | None:
    """The range of integers of which nothing else is known."""
    if dtype.kind not in "iu":
        return None
    if dtype.itemsize == 1:
        return Range(np.iinfo(dtype).min, np.iinfo(dtype).max, True)
    sizes = [m.input_dim for m in parts(model) if type(m).__name__ == "Embedding"]
    return Range(0, min(sizes, default=2) - 1, True)


def _chain(model: Any) -> Range | None:
    """What the first layers of a model expect that is no graph, in the order of its layers."""
    way = _Way()
    for layer in getattr(model, "layers", ()):
        inner = graph_of(layer)
        if inner is not None:
            return _follow(inner, inner.ref(layer.inputs[0]), way)
        linear, known = _layer(layer)
        if known is not None:
            return way.back(known)
        if linear is None:
            break
        way = way.then(*linear)
    return way.end()


def _follow(calls: CallGraph, ref: Ref, way: _Way) -> Range | None:
    """What the readers of a tensor expect, as a range of the input; None: they don't say."""
    readers = [calls.calls[key] for key in calls.readers[ref]]
    found = [one for call in readers if (one := _by_call(calls, call, ref, way))]
    whole = [one for one in found if one.whole]
    if whole:  # of two tables the smaller one holds for both
        return min(whole, key=lambda one: float(np.max(one.high)))
    return found[0] if found else way.end()


def _by_call(calls: CallGraph, call: Call, ref: Ref, way: _Way) -> Range | None:
    """What one reader expects, or those behind it."""
    layer = call.layer
    symbolic = hasattr(layer, "symbol")
    linear, known = _operation(call, calls.tensors[ref]) if symbolic else _layer(layer)
    if known is not None:
        return way.back(known)
    inner = calls.nested.get(call.name)
    if inner is not None:
        tensor = inner.model.inputs[call.inputs.index(ref)]
        return _follow(inner, inner.ref(tensor), way)
    if linear is not None and len(call.outputs) == 1:
        return _follow(calls, call.outputs[0], way.then(*linear))
    return way.end()


_SAME = (1.0, 0.0)
_Linear = tuple[Any, Any]


def _layer(layer: Any) -> tuple[_Linear | None, Range | None]:
    """(scale and offset of a layer that only moves numbers, what a layer expects)."""
    if type(layer).__name__ in ("TimeDistributed", "Bidirectional"):
        layer = layer.layer
    kind = type(layer).__name__
    if kind == "Rescaling":
        return (np.asarray(layer.scale, float), np.asarray(layer.offset, float)), None
    if _PASSES.fullmatch(kind):
        return _SAME, None
    return None, _KNOWN[kind](layer) if kind in _KNOWN else _table(layer)


def _normal(layer: Any) -> Range | None:
    """Two standard deviations around the mean that a layer subtracts."""
    if getattr(layer, "invert", False) or getattr(layer, "mean", None) is None:
        return None
    mean, spread = np.asarray(layer.mean), np.sqrt(np.asarray(layer.variance))
    return Range(mean - 2 * spread, mean + 2 * spread)


def _batch_normal(layer: Any) -> Range:
    axes = [layer.axis] if isinstance(layer.axis, int) else list(layer.axis)
    shape = np.ones(layer.input_spec.ndim or 1 - min(axes), int)
    mean, spread = layer.moving_mean.numpy(), np.sqrt(layer.moving_variance.numpy())
    shape[axes] = mean.shape
    mean, spread = mean.reshape(shape), spread.reshape(shape)
    return Range(mean - 2 * spread, mean + 2 * spread)


def _numbers(layer: Any) -> Range | None:
    """From the least to the largest number of a vocabulary."""
    known = [int(v) for v in layer.get_vocabulary(include_special_tokens=False)]
    return Range(min(known), max(known), True) if known else None


def _bins(layer: Any) -> Range | None:
    edges = layer.bin_boundaries
    return Range(min(edges) - 1.0, max(edges) + 1.0) if edges else None


def _table(layer: Any) -> Range | None:
    """The words of a table somewhere inside a layer; of several the fewest."""
    sizes = [m.input_dim for m in parts(layer) if type(m).__name__ == "Embedding"]
    return Range(0, min(sizes) - 1, True) if sizes else None


_KNOWN: dict[str, Callable[[Any], Range | None]] = {
    "Normalization": _normal,
    "BatchNormalization": _batch_normal,
    "SyncBatchNormalization": _batch_normal,
    "Embedding": lambda one: Range(int(one.mask_zero), one.input_dim - 1, True),
    "CategoryEncoding": lambda one: Range(0, one.num_tokens - 1, True),
    "Hashing": lambda one: Range(0, 999, True),
    "IntegerLookup": _numbers,
    "Discretization": _bins,
    "FixedQuantize": lambda one: Range(one.low, one.high),
}


def _operation(call: Call, tensor: Any) -> tuple[_Linear | None, Range | None]:
    """As `_layer`, for an operation of TensorFlow that was called on a Keras tensor."""
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
        return None, Range(0, len(other) - 1, True)
    if name == "one_hot" and first:
        return None, Range(0, int(other) - 1, True)
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
    """A number or an array of numbers; None for everything else."""
    if isinstance(value, (bool, str)) or value is None or hasattr(value, "node"):
        return None
    try:
        found = np.asarray(value)
    except (TypeError, ValueError, NotImplementedError):
        return None
    return found.astype(float) if found.dtype.kind in "iuf" else None
