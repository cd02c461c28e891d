"""Channel rules of TensorFlow functions on Keras tensors: `x + y`, `tf.nn.relu(x)`, slices."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import tensorflow as tf

from tfkd.keras_internals import SlicingOpLambda, TFOpLambda
from tfkd.pruning.channel_ledger import Channels
from tfkd.pruning.rules.channel_call import ChannelCall, flatten
from tfkd.pruning.rules.merges import combine, concatenate
from tfkd.pruning.rules.registry import rule_for

# Symbols of elementwise functions of one or several tensors.
_ELEMENTWISE = frozenset(
    """
    __operators__.add math.add math.subtract math.negative math.abs math.square math.sqrt
    math.rsqrt math.exp math.expm1 math.log math.log1p math.tanh math.sigmoid math.softplus
    math.softsign math.sin math.cos math.erf math.maximum math.minimum math.pow math.sign
    math.reciprocal math.floor math.ceil math.round math.squared_difference math.add_n
    nn.relu nn.relu6 nn.elu nn.selu nn.leaky_relu nn.silu nn.swish nn.gelu nn.softsign
    nn.sigmoid nn.tanh nn.softplus clip_by_value identity cast stop_gradient grad_pass_through
    sigmoid tanh exp abs negative add subtract square maximum minimum pow sqrt
    """.split()
)
_PRODUCTS = frozenset(
    "math.multiply multiply math.truediv math.divide truediv divide math.divide_no_nan "
    "math.multiply_no_nan".split()
)
_DIVISIONS = frozenset("math.truediv math.divide truediv divide math.divide_no_nan".split())
_SUMS = frozenset(
    "__operators__.add math.add math.subtract math.add_n add subtract math.maximum math.minimum "
    "maximum minimum math.squared_difference".split()
)
# Functions of images (batch, height, width, channels) that treat each channel alone and
# map zeros to zeros.
_SPATIAL = frozenset("image.resize image.flip_left_right image.flip_up_down".split())
_REDUCTIONS = frozenset(
    "math.reduce_mean math.reduce_max math.reduce_sum math.reduce_min reduce_mean reduce_max "
    "reduce_sum reduce_min".split()
)


def _arguments(call: ChannelCall) -> dict[str, Any]:
    """The function's arguments by name, defaults included."""
    bound = inspect.signature(call.layer.function).bind(*call.args, **call.kwargs)
    bound.apply_defaults()
    return dict(bound.arguments)


@rule_for(TFOpLambda)
def _operation(call: ChannelCall) -> list[Channels]:
    symbol = call.layer.symbol
    rule = _OTHERS.get(symbol)
    if symbol in _REDUCTIONS:
        rule = _reduce
    elif symbol in _SPATIAL:
        rule = _on_images
    elif symbol in _ELEMENTWISE or symbol in _PRODUCTS:
        rule = _elementwise
    if rule is None or not call.inputs:
        call.ledger.unruled.append(call.path)
        return call.freeze_all(f"no rule for {call.path}, the operation tf.{symbol}")
    return rule(call)


def _elementwise(call: ChannelCall) -> list[Channels]:
    """Couples all tensors; the result is zero if f(0, …, 0) = 0, or if any factor is zero."""
    for value in flatten((call.args, call.kwargs)):
        if not isinstance(value, Channels) and _per_channel(call, np.shape(value)):
            return call.freeze_all(f"{call.path} has a separate constant for each channel")
    symbol = call.layer.symbol
    if symbol in _PRODUCTS and len(call.inputs) > 1 and symbol not in _DIVISIONS:
        return combine(call, call.inputs, product=True, is_sum=False)
    out = combine(call, call.inputs, is_sum=symbol in _SUMS)
    if out[0].axis is None or _at_zero(call) == 0:
        return out
    return [out[0].with_zero(False)]


def _per_channel(call: ChannelCall, shape: tuple[int, ...]) -> bool:
    """True for a constant that may differ between channels."""
    axes = {x.from_end for x in call.inputs if x.axis is not None}
    return any(len(shape) >= -axis and shape[axis] > 1 for axis in axes if axis is not None)


def _at_zero(call: ChannelCall) -> float:
    """max |f(0, …, 0)|; NaN if the function can't be evaluated at zero tensors."""
    zero = lambda x: tf.zeros((1,)) if isinstance(x, Channels) else x  # noqa: E731
    args, kwargs = tf.nest.map_structure(zero, (call.args, call.kwargs))
    try:
        with tf.init_scope():
            return float(np.abs(np.asarray(call.layer.function(*args, **kwargs))).max())
    except (ValueError, TypeError, tf.errors.OpError):
        return float("nan")


def _on_images(call: ChannelCall) -> list[Channels]:
    if call.input.axis is not None and call.input.from_end != -1:
        return call.freeze_all(f"{call.path} works along another axis than the channels")
    return call.same(call.input)


def _reduce(call: ChannelCall) -> list[Channels]:
    x, given = call.input, _arguments(call)
    if x.axis is None:
        return [Channels(call.shape)]
    rank = len(x.shape)
    axes = {int(a) % rank for a in _listed(given["axis"], rank)}
    if x.axis in axes or 0 in axes:
        return call.freeze_all(f"{call.path} reduces over channels or over the batch")
    gone = 0 if given["keepdims"] else sum(a < x.axis for a in axes)
    return [x.reshaped(call.shape, x.axis - gone)]


def _listed(axes: Any, rank: int) -> list[Any]:
    """Axes as a list; None stands for all."""
    return list(range(rank)) if axes is None else list(np.atleast_1d(axes))


def _pad(call: ChannelCall) -> list[Channels]:
    x, given = call.input, _arguments(call)
    if x.axis is None:
        return [Channels(call.shape)]
    paddings = np.asarray(given["paddings"])
    if paddings.shape != (len(x.shape), 2) or paddings[x.axis].any():
        return call.freeze_all(f"{call.path} pads the channels")
    constant = given["mode"].upper() == "CONSTANT" and given["constant_values"] != 0
    out = call.same(x)
    return [out[0].with_zero(False)] if constant else out


def _concat(call: ChannelCall) -> list[Channels]:
    return concatenate(call, call.inputs, int(_arguments(call)["axis"]))


def _transpose(call: ChannelCall) -> list[Channels]:
    x, given = call.input, _arguments(call)
    if x.axis is None:
        return [Channels(call.shape)]
    order = given["perm"]
    order = list(range(len(x.shape)))[::-1] if order is None else [int(i) for i in order]
    return [x.reshaped(call.shape, order.index(x.axis))]


def _squeeze(call: ChannelCall) -> list[Channels]:
    x = call.input
    if x.axis is None:
        return [Channels(call.shape)]
    axes = _arguments(call)["axis"]
    if axes is None or x.axis in {int(a) % len(x.shape) for a in np.atleast_1d(axes)}:
        return call.freeze_all(f"{call.path} may squeeze the channels")
    gone = sum(int(a) % len(x.shape) < x.axis for a in np.atleast_1d(axes))
    return [x.reshaped(call.shape, x.axis - gone)]


def _expand(call: ChannelCall) -> list[Channels]:
    x = call.input
    if x.axis is None:
        return [Channels(call.shape)]
    axis = int(_arguments(call)["axis"]) % len(call.shape)
    return [x.reshaped(call.shape, x.axis + (axis <= x.axis))]


def _reshape(call: ChannelCall) -> list[Channels]:
    """Flattening with −1 alone: its size is inferred again after pruning."""
    x, shape = call.input, _arguments(call)["shape"]
    if x.axis is None:
        return [Channels(call.shape)]
    whole = not any(isinstance(v, Channels) for v in flatten(shape))
    sizes = [int(s) for s in np.asarray(shape).reshape(-1)] if whole else []
    flat = sizes[1:] == [-1] and sizes[0] != -1 and None not in x.shape[1:]
    if not flat:
        return call.freeze_all(f"{call.path} reshapes to sizes that are constants of the call")
    sizes_in = [int(size or 0) for size in x.shape[1:]]
    ones = [1] * len(sizes_in)
    ones[x.axis - 1] = len(x.atoms)
    spread = [np.broadcast_to(v.reshape(ones), sizes_in).reshape(-1) for v in (x.atoms, x.zero)]
    return call.output(spread[0], -1, spread[1])


_OTHERS = {"pad": _pad, "transpose": _transpose, "squeeze": _squeeze}
# Keras records tf.pad, tf.transpose and tf.squeeze under these symbols.
_OTHERS |= {f"compat.v1.{name}": rule for name, rule in _OTHERS.items()}
_OTHERS |= {"concat": _concat, "expand_dims": _expand, "reshape": _reshape}


_SLICE = ("start", "stop", "step")


@rule_for(SlicingOpLambda)
def _slice(call: ChannelCall) -> list[Channels]:
    """Slices along other axes than the channels."""
    x = call.input
    if x.axis is None:
        return [Channels(shape) for shape in call.shapes]
    spec = call.kwargs.get("slice_spec", call.args[1] if len(call.args) > 1 else None)
    parts = list(spec) if isinstance(spec, (list, tuple)) else [spec]
    # Keras serializes a slice as a dict with start, stop and step.
    parts = [slice(*(p[k] for k in _SLICE)) if isinstance(p, dict) else p for p in parts]
    if not all(_is_whole_slice(p) or isinstance(p, (int, slice)) or p is Ellipsis for p in parts):
        return call.freeze_all(f"{call.path} uses an index that is not supported")
    if Ellipsis in parts:
        at = parts.index(Ellipsis)
        parts[at : at + 1] = [slice(None)] * (len(x.shape) - len(parts) + 1)
    parts += [slice(None)] * (len(x.shape) - len(parts))
    if not _is_whole_slice(parts[x.axis]):
        return call.freeze_all(f"{call.path} slices the channels at constant positions")
    gone = sum(isinstance(p, int) for p in parts[: x.axis])
    return [x.reshaped(call.shape, x.axis - gone)]


def _is_whole_slice(part: Any) -> bool:
    return isinstance(part, slice) and (part.start, part.stop, part.step) == (None, None, None)
