"""Known bugs of TensorFlow that tfkd can't work around, and warnings for affected models.

oneDNN, TensorFlow's backend on x86 processors, has a buffer overflow in the weight
gradient of strided convolutions with a 1×1 kernel and fewer input channels than a
vector register holds numbers. It copies every stride-th position into a workspace of
`positions · channels` numbers, but addresses it as `position · register width`, and so
writes into other memory: Python crashes or hangs, or the gradient is wrong. A copy that
begins at an image's first position still fits, so an image must have more positions
than one block copies, which is the register width. Which blocks begin a copy also
depends on the batch size and the number of threads, which are not known beforehand.

Seen with TensorFlow 2.21 (oneDNN 3.7.3): https://github.com/uxlfoundation/oneDNN/issues/6035
"""

from __future__ import annotations

import math
import os
import pathlib
import platform
import sys
import weakref
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import tensorflow as tf
import tf_keras as keras

from tfkd import checks
from tfkd.networks.layer_parts import calls_anywhere, flat_layers

_AVX512 = {"avx512f", "avx512bw", "avx512vl", "avx512dq"}
# The dtypes of the affected kernels by register width; bfloat16 ones need AVX-512.
_DTYPES = {16: ("float32", "bfloat16"), 8: ("float32",)}
_warned: weakref.WeakSet[Any] = weakref.WeakSet()


def register_width(flags: Collection[str], limit: str = "") -> int:
    """Number of float32 values in the vector registers that oneDNN's convolutions use.

    Args:
        flags: feature flags of the processor, as in /proc/cpuinfo.
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
        kernel_size, strides: of the convolution, one number per spatial axis.
        channels: channels of its input (of its output if it is transposed).
        size: height and width of the same tensor; None where it is open and may be any.
        dtype: dtype of the computation.
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
        return False  # oneDNN chooses another kernel if the stride does not divide the size.
    if None in size:
        return True
    return math.prod(length // stride for length, stride in axes if length) > width


def environment_width() -> int:
    """`register_width` for this process; 0 if its convolutions are not computed by oneDNN."""
    if not sys.platform.startswith("linux") or platform.machine() not in ("x86_64", "AMD64"):
        return 0
    if not _uses_onednn() or tf.config.list_physical_devices("GPU"):
        return 0
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA") or ""
    return register_width(_cpu_flags(), limit)


def _uses_onednn() -> bool:
    """TensorFlow's choice at import, which depends on TF_ENABLE_ONEDNN_OPTS and the processor."""
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
    """Name → description of the trainable convolutions whose weight gradient `overflows`."""
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
    """Yields the trainable convolutions with the shapes that their kernels slide over."""
    layers = flat_layers(model, include_self=False)
    # A wrapped layer has no nodes in the graph; its wrapper has.
    wrappers = {id(w.layer): w for w in layers if isinstance(w, keras.layers.Wrapper)}
    for layer in layers:
        if not isinstance(layer, (keras.layers.Conv1D, keras.layers.Conv2D)):
            continue
        depthwise = hasattr(layer, "depthwise_kernel")
        if depthwise or not layer.built or not layer.trainable or layer.groups != 1:
            continue  # Keras compiles grouped convolutions with XLA, which avoids oneDNN.
        place = layer
        while id(place) in wrappers:
            place = wrappers[id(place)]
        transposed = isinstance(layer, (keras.layers.Conv1DTranspose, keras.layers.Conv2DTranspose))
        nodes = calls_anywhere(place)
        yield layer, [node.output_shapes if transposed else node.input_shapes for node in nodes]


def _size(shape: Any, axes: int, channels_last: bool) -> tuple[int | None, ...]:
    """The spatial sizes in a shape with any number of leading axes; None where unknown."""
    if shape is None or not isinstance(shape, (tuple, tf.TensorShape)) or len(shape) < axes + 2:
        return (None,) * axes
    return tuple(shape)[-axes - 1 : -1] if channels_last else tuple(shape)[-axes:]


def warn_of_overflow(model: keras.Model) -> None:
    """Warns, once per model, if training it may corrupt memory in this process."""
    if model in _warned:
        return
    width = environment_width()
    layers = overflowing_layers(model, width) if width else {}
    if not layers:
        return
    _warned.add(model)
    shown = [f"{name!r} ({what})" for name, what in list(layers.items())[:3]]
    more = f" and {len(layers) - 3} more" if len(layers) > 3 else ""
    checks.warn(
        f"Training {model.name!r} may end Python with a segmentation fault, or give wrong "
        "gradients: TensorFlow's oneDNN writes past its memory in the gradient of convolutions "
        f"with a 1×1 kernel, strides, and fewer than {width} input channels (of a transposed one: "
        "filters) on this processor. "
        f"Here: {', '.join(shown)}{more}. Set the environment variable TF_ENABLE_ONEDNN_OPTS=0 "
        f"before TensorFlow is imported, or give the layer {width} input channels or more.",
        RuntimeWarning,
    )
