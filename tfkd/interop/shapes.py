"""Lowering of Keras 3 shape operations: reshape, transpose, slice, concatenate, pad, gather."""

from __future__ import annotations

import numpy as np
import tensorflow as tf
import tf_keras as keras

from tfkd.interop.configs import Missing
from tfkd.interop.keras3_call import Keras3Call, is_tensor
from tfkd.keras_internals import KerasTensor, SlicingOpLambda


def reshape(call: Keras3Call) -> KerasTensor:
    new = [-1 if size is None else size for size in call.op.newshape]
    if any(not isinstance(size, (int, np.integer)) for size in new) or new.count(-1) > 1:
        raise Missing(f"newshape={call.op.newshape!r}")
    rest = list(call.x.shape[1:])
    whole = None not in rest and -1 not in new[1:] and np.prod(rest) == np.prod(new[1:])
    if call.x.shape[0] is None and new[0] == -1 and whole:
        return call.layer(keras.layers.Reshape, call.x, new[1:])
    return call.run(tf.reshape, call.x, new)


def ravel(call: Keras3Call) -> KerasTensor:
    return call.run(tf.reshape, call.x, [-1])


def _permute(call: Keras3Call, order: list[int]) -> KerasTensor:
    order = [int(axis) % len(order) for axis in order]
    if order[0] == 0 and len(order) > 1:
        return call.layer(keras.layers.Permute, call.x, order[1:])
    return call.run(tf.transpose, call.x, perm=order)


def transpose(call: Keras3Call) -> KerasTensor:
    return _permute(call, list(call.op.axes or range(len(call.x.shape))[::-1]))


def swap_axes(call: Keras3Call) -> KerasTensor:
    order = list(range(len(call.x.shape)))
    one, two = call.op.axis1, call.op.axis2
    order[one], order[two] = order[two], order[one]
    return _permute(call, order)


def move_axis(call: Keras3Call) -> KerasTensor:
    rank = len(call.x.shape)
    pairs = zip(call.op.source, call.op.destination, strict=True)
    places = {to % rank: at % rank for at, to in pairs}
    others = (axis for axis in range(rank) if axis not in places.values())
    return _permute(call, [places[i] if i in places else next(others) for i in range(rank)])


def expand(call: Keras3Call) -> KerasTensor:
    return call.run(tf.expand_dims, call.x, axis=call.one_axis())


def squeeze(call: Keras3Call) -> KerasTensor:
    axes = call.axes()
    if axes is None:
        axes = [i for i, size in enumerate(call.x.shape) if size == 1]
    return call.run(tf.squeeze, call.x, axis=axes)


def concatenate(call: Keras3Call) -> KerasTensor:
    tensors, axis = [call.cast(x) for x in call.x], call.one_axis()
    if axis != 0 and axis != -len(call.shape) and all(map(is_tensor, tensors)):
        return call.layer(keras.layers.Concatenate, tensors, axis=axis)
    return call.run(tf.concat, tensors, axis=axis)


def stack(call: Keras3Call) -> KerasTensor:
    return call.run(tf.stack, [call.cast(x) for x in call.x], axis=call.one_axis())


def split(call: Keras3Call) -> list[KerasTensor]:
    parts, axis = call.op.indices_or_sections, call.one_axis()
    if not isinstance(parts, int):
        size = call.x.shape[axis]
        if size is None:
            raise Missing("split indices along an axis of unknown size")
        parts = np.diff([0, *parts, size]).tolist()
    return call.run(tf.split, call.x, parts, axis=axis)


def pad(call: Keras3Call) -> KerasTensor:
    widths = [[int(n) for n in pair] for pair in call.op.pad_width]
    widths = widths * len(call.x.shape) if len(widths) == 1 else widths
    value = [*call.args[1:], *call.kwargs.values()]
    if call.op.mode not in ("constant", "reflect", "symmetric"):
        raise Missing(f"mode={call.op.mode!r}")
    constant = value[0] if value and value[0] is not None else 0
    return call.run(tf.pad, call.x, widths, mode=call.op.mode.upper(), constant_values=constant)


def take(call: Keras3Call) -> KerasTensor:
    x, indices = call.args
    axis = call.one_axis()
    if not is_tensor(indices):
        if np.min(indices, initial=0) < 0 and x.shape[axis] is None:
            raise Missing("negative indices along an axis of unknown size")
        indices = np.where(np.less(indices, 0), np.add(indices, x.shape[axis] or 0), indices)
    return call.run(tf.gather, x, indices, axis=axis)


def get_item(call: Keras3Call) -> KerasTensor:
    key = call.args[1] if isinstance(call.args[1], tuple) else (call.args[1],)
    if not all(k is None or k is Ellipsis or isinstance(k, (int, slice)) for k in key):
        raise Missing("an index that does not consist of integers and slices")
    if Ellipsis in key:  # Keras can't serialize an Ellipsis.
        at = key.index(Ellipsis)
        taken = sum(k is not None and k is not Ellipsis for k in key)
        whole = (slice(None),) * (len(call.x.shape) - taken)
        key = (*key[:at], *whole, *key[at + 1 :])
    parts = [
        {"start": k.start, "stop": k.stop, "step": k.step} if isinstance(k, slice) else k
        for k in key
    ]
    named = {"name": call.name} if call.name else {}
    return SlicingOpLambda(tf.__operators__.getitem, **named)(call.x, parts)


def flip(call: Keras3Call) -> KerasTensor:
    axes = call.axes()
    return call.run(tf.reverse, call.x, list(range(len(call.x.shape))) if axes is None else axes)


def tile(call: Keras3Call) -> KerasTensor:
    repeats = [int(n) for n in np.ravel(call.op.repeats)]
    if len(repeats) > len(call.x.shape):
        raise Missing(f"repeats={call.op.repeats!r}, more than the tensor has axes")
    return call.run(tf.tile, call.x, [1] * (len(call.x.shape) - len(repeats)) + repeats)


def repeat(call: Keras3Call) -> KerasTensor:
    return call.run(tf.repeat, call.x, call.op.repeats, axis=call.op.axis)


def resize(call: Keras3Call) -> KerasTensor:
    op = call.op
    if op.data_format != "channels_last" or op.crop_to_aspect_ratio or op.pad_to_aspect_ratio:
        raise Missing("channels first, or a preserved aspect ratio")
    # tf.image.resize returns float32 (but for "nearest"); a cast after it gets the name.
    call_ = call if call.dtype == "float32" else call._replace(name=None)
    x = call_.run(
        tf.image.resize, call.x, list(op.size), method=op.interpolation, antialias=op.antialias
    )
    return x if x.dtype == call.dtype else call.run(tf.cast, x, call.dtype)
