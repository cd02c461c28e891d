"""Faults of TensorFlow that tfkd can't get round, and what meets them.

oneDNN, with which TensorFlow computes on x86 processors, writes past its workspace in
the weight gradient of a convolution with a 1×1 kernel and a stride, where there are
fewer input channels than numbers in a vector register. It copies every stride-th
position into a workspace of `positions · channels` numbers, but addresses it with
`position · register`. What follows stands in other memory: Python ends by a signal,
hangs, or the gradient is wrong. A copy that begins at an image's first position fits,
so an image must have more positions than are copied as one block, which is as many as
a register has numbers. Which blocks begin a copy depends on the batch and the number
of threads as well, which no one knows beforehand.

Seen with TensorFlow 2.21 (oneDNN 3.7.3): https://github.com/uxlfoundation/oneDNN/issues/6035
"""

from __future__ import annotations

import math
import os
import pathlib
import platform
import sys
import warnings
import weakref
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import tensorflow as tf
import tf_keras as keras

from tfkd.networks.layer_parts import calls_anywhere, flat_layers

_AVX512 = {"avx512f", "avx512bw", "avx512vl", "avx512dq"}
_DTYPES = {16: ("float32", "bfloat16"), 8: ("float32",)}
_warned: weakref.WeakSet[Any] = weakref.WeakSet()


def register_width(flags: Collection[str], limit: str = "") -> int:
    """Float32 numbers in the registers that oneDNN's convolutions use.

    Args:
        flags: of the processor, as in /proc/cpuinfo.
        limit: value of the environment variable ONEDNN_MAX_CPU_ISA.

    Returns:
        16 (AVX-512), 8 (AVX2), or 0 for a processor without either.

    Example:
        >>> register_width({"avx2", "avx512f", "avx512bw", "avx512vl", "avx512dq"})
        16
        >>> register_width({"avx2", "fma"}), register_width({"avx2"}, "SSE41")
        (8, 0)
    """
    limit = limit.upper()
    if limit in ("SSE41", "AVX") or "avx2" not in flags:
        return 0
    return 16 if set(flags) >= _AVX512 and not limit.startswith("AVX2") else 8


def overflows(
    kernel_size: Sequence[int],
    strides: Sequence[int],
    channels: int,
    size: Sequence[int | None],
    dtype: str = "float32",
    width: int = 16,
) -> bool:
    """Whether oneDNN may write past its workspace in a convolution's weight gradient.

    Args:
        kernel_size, strides: of the convolution, one number for each axis.
        channels: of its input (of a transposed convolution: of its output).
        size: height and width of that; None where it is open, which may be any.
        dtype: in which it computes.
        width: see `register_width`.

    Example:
        >>> overflows((1, 1), (2, 2), 4, (60, 60)), overflows((1, 1), (2, 2), 16, (60, 60))
        (True, False)
        >>> overflows((1, 1), (2, 2), 4, (59, 59)), overflows((3, 3), (2, 2), 4, (60, 60))
        (False, False)
    """
    if channels >= width or dtype not in _DTYPES[width]:
        return False
    if len(kernel_size) > 2 or math.prod(kernel_size) != 1 or math.prod(strides) == 1:
        return False
    axes = list(zip(size, strides, strict=True))
    if any(length is not None and length % stride for length, stride in axes):
        return False  # another way of computing it
    if None in size:
        return True
    return math.prod(length // stride for length, stride in axes if length) > width


def environment_width() -> int:
    """`register_width` of this process; 0 where its convolutions don't come from oneDNN."""
    if not sys.platform.startswith("linux") or platform.machine() not in ("x86_64", "AMD64"):
        return 0
    if not _uses_onednn() or tf.config.list_physical_devices("GPU"):
        return 0
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA") or ""
    return register_width(_cpu_flags(), limit)


def _uses_onednn() -> bool:
    """What TensorFlow decided when it was loaded, from TF_ENABLE_ONEDNN_OPTS and the processor."""
    try:
        from tfkd.keras_internals import _pywrap_util_port
    except ImportError:
        return os.environ.get("TF_ENABLE_ONEDNN_OPTS", "1").lower() in ("1", "true")
    return bool(_pywrap_util_port.IsMklEnabled())


def _cpu_flags() -> set[str]:
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return set()
    return next((set(line.split()) for line in lines if line.startswith("flags")), set())


def overflowing_layers(model: keras.Model, width: int) -> dict[str, str]:
    """{name: what it is} of the trainable convolutions of a model whose gradient `overflows`."""
    found = {}
    for layer, shapes in _convolutions(model):
        channels = int(layer.kernel.shape[-2])
        last = layer.data_format == "channels_last"
        for shape in shapes or [None]:
            size = _size(shape, len(layer.kernel_size), last)
            arguments = (layer.kernel_size, layer.strides, channels, size, layer.compute_dtype)
            if overflows(*arguments, width):
                shown = "×".join("?" if n is None else str(n) for n in size)
                strides = "×".join(map(str, layer.strides))
                found[layer.name] = f"strides {strides}, {channels} channels at {shown}"
    return found


def _convolutions(model: keras.Model) -> Iterator[tuple[Any, list[Any]]]:
    """The trainable convolutions, and the shapes on which their kernels work."""
    layers = flat_layers(model, include_self=False)
    # A wrapped layer has no place in the graph: its wrapper has.
    wrappers = {id(w.layer): w for w in layers if isinstance(w, keras.layers.Wrapper)}
    for layer in layers:
        if not isinstance(layer, (keras.layers.Conv1D, keras.layers.Conv2D)):
            continue
        depthwise = hasattr(layer, "depthwise_kernel")
        if depthwise or not layer.built or not layer.trainable or layer.groups != 1:
            continue  # groups are computed by XLA
        place = layer
        while id(place) in wrappers:
            place = wrappers[id(place)]
        transposed = isinstance(layer, (keras.layers.Conv1DTranspose, keras.layers.Conv2DTranspose))
        nodes = calls_anywhere(place)
        yield layer, [node.output_shapes if transposed else node.input_shapes for node in nodes]


def _size(shape: Any, axes: int, channels_last: bool) -> tuple[int | None, ...]:
    """Height and width, however many axes stand before them; open if nothing is known."""
    if shape is None or not isinstance(shape, (tuple, tf.TensorShape)) or len(shape) < axes + 2:
        return (None,) * axes
    return tuple(shape)[-axes - 1 : -1] if channels_last else tuple(shape)[-axes:]


def warn_of_overflow(model: keras.Model, stacklevel: int = 3) -> None:
    """Warns, once for each model, where training it may corrupt memory in this process."""
    if model in _warned:
        return
    width = environment_width()
    layers = overflowing_layers(model, width) if width else {}
    if not layers:
        return
    _warned.add(model)
    shown = [f"{name!r} ({what})" for name, what in list(layers.items())[:3]]
    more = f" and {len(layers) - 3} more" if len(layers) > 3 else ""
    warnings.warn(
        f"Training {model.name!r} may end Python with a segmentation fault, or give wrong "
        "gradients: TensorFlow's oneDNN writes past its memory in the gradient of convolutions "
        f"with a 1×1 kernel, strides, and fewer than {width} input channels (of a transposed one: "
        "filters) on this processor. "
        f"Here: {', '.join(shown)}{more}. Set the environment variable TF_ENABLE_ONEDNN_OPTS=0 "
        f"before TensorFlow is imported, or give the layer {width} input channels or more.",
        RuntimeWarning,
        stacklevel=stacklevel,
    )
