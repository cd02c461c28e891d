"""Sets the ranges of activations from example inputs.

Ranges that start at a guess cost accuracy for hundreds of steps: what lies
beyond is clipped and has no gradient. So they are set before training, from the
values that the activations really take while the model computes with quantized
weights and unquantized activations.

References: Wu et al. 2020, Integer Quantization for Deep Learning Inference,
https://arxiv.org/abs/2004.09602 (the whole range, percentiles); Nagel et al.
2021, A White Paper on Neural Network Quantization,
https://arxiv.org/abs/2106.08295 (the least squared error).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tfkd import checks, example_inputs
from tfkd.networks import layer_weights
from tfkd.quantization.fake_quant import SMALLEST, observing
from tfkd.quantization.norm_statistics import NormStatistics
from tfkd.quantization.quantized_model import (
    QuantizedModel,
    Range,
    check_quantized,
    range_variables,
)

METHODS = ("minmax", "percentile", "mse")
BINS = 4096
CANDIDATES = 100
_LEVELS = 255
TIE = 1e-3  # of a step: nearer to the middle of two codes is between them
MOST_TIES = 0.01

Ends = dict[int, tuple[float, float]]  # id of a range's variable → (low, high)


def calibrate(
    q: QuantizedModel,
    data: Any,
    method: str = "minmax",
    *,
    batch_size: int = 64,
    percentile: float = 99.99,
    max_examples: int | None = None,
) -> None:
    """Sets every range of a quantized model; weights and statistics stay as they are.

    100 to 500 examples are usual. It may be done again at any time, with other
    data or another method. Warns where the moving statistics of batch normalizations
    are far from what the first examples show: take them anew then, with
    `tfkd.pruning.recalibrate`.

    Args:
        q: made by `quantize`.
        data: examples as the model takes them (normalised), in any form of
            `tfkd.example_inputs`.
        method: "minmax": all values that occur; "percentile": all but the most
            extreme; "mse": the range with the least mean squared error of rounding
            and clipping together, of 100 that are tried.
        batch_size: examples a forward pass.
        percentile: for "percentile": how many per cent of |x| a symmetric range
            holds, or of x below its upper and above its lower end.
        max_examples: read no further; None: as said there.

    Raises:
        TypeError: if `q` is not a quantized model, or data are of the wrong kind.
        ValueError: if there are no data, their shape is wrong, or they or the
            activations are NaN or infinite. The ranges stay as they were.

    Example:
        >>> import numpy as np, tf_keras as keras, tfkd
        >>> model = keras.Sequential([keras.layers.Dense(1, name="dense")])
        >>> model.build((None, 2))
        >>> model.set_weights([np.ones((2, 1)), np.zeros(1)])
        >>> q = tfkd.quantization.quantize(model)
        >>> tfkd.quantization.calibrate(q, np.array([[1.0, 2.0], [-1.0, 0.5]]))
        >>> q.ranges["dense"]
        (-0.5, 3.0)
    """
    check_quantized("q", q)
    ranges = [end for one in range_variables(q) for end in (one.low, one.high)]
    layer_weights.check_finite("q", q, but=ranges)
    checks.one_of("method", method, METHODS)
    checks.positive_int("batch_size", batch_size)
    checks.positive("percentile", percentile)
    if not 50 < percentile <= 100:
        raise checks.value_error("percentile", "a number above 50 and up to 100", percentile)
    inputs = example_inputs.inputs_of(q)
    arrays = example_inputs.collect("data", data, inputs, max_examples=max_examples)
    statistics = NormStatistics(q)
    with statistics.watching():
        ends = _ends(q, arrays, batch_size)
    statistics.warn()
    if method != "minmax":
        counts = _histograms(q, arrays, batch_size, ends)
        for key, range_ in _by_key(q).items():
            args = (counts[key], *ends[key], range_.quantizer.symmetric)
            if not ends[key][1] - ends[key][0] > 0:
                continue
            if method == "percentile":
                ends[key] = percentile_range(*args, percentile)
            else:
                ends[key] = least_squares_range(*args)
    for key, range_ in _by_key(q).items():
        values = arrays.get(range_.place[0])
        if values is not None and not range_.quantizer.symmetric:
            ends[key] = beside_ties(values, *ends[key])
    _assign(q, ends)


def _by_key(q: QuantizedModel) -> dict[int, Range]:
    return {id(range_.low): range_ for range_ in range_variables(q)}


def _run(
    q: QuantizedModel,
    arrays: Mapping[str, np.ndarray],
    batch_size: int,
    see: Callable[[int, Any], None],
) -> None:
    """Shows every activation of every batch to `see(key, tensor)`."""
    count = len(next(iter(arrays.values())))
    with observing(lambda low, tensor: see(id(low), tensor)):
        for start in range(0, count, batch_size):
            batch = {k: tf.constant(v[start : start + batch_size]) for k, v in arrays.items()}
            q(example_inputs.packed(q, batch), training=False)


def _ends(q: QuantizedModel, arrays: Mapping[str, np.ndarray], batch_size: int) -> Ends:
    """The smallest and largest value of each activation."""
    ranges = _by_key(q)
    ends: Ends = {}

    def see(key: int, tensor: Any) -> None:
        low, high = float(tf.reduce_min(tensor)), float(tf.reduce_max(tensor))
        if not np.isfinite(low + high):
            raise ValueError(
                f"`data`: expected finite activations, received NaN or infinity at "
                f"{ranges[key].layer.name!r}. Look at the weights of the model, and whether the "
                "inputs are scaled as it was trained."
            )
        before = ends.get(key, (0.0, 0.0))  # A range holds 0.
        ends[key] = min(before[0], low), max(before[1], high)

    _run(q, arrays, batch_size, see)
    for key, range_ in ranges.items():
        if range_.quantizer.symmetric:
            most = max(-ends[key][0], ends[key][1])
            ends[key] = -most, most
    return ends


def _histograms(
    q: QuantizedModel, arrays: Mapping[str, np.ndarray], batch_size: int, ends: Ends
) -> dict[int, np.ndarray]:
    """How many values lie in each of `BINS` parts of a range; of |x| where it is symmetric."""
    ranges = _by_key(q)
    counts = {key: np.zeros(BINS) for key in ranges}

    def see(key: int, tensor: Any) -> None:
        low, high = _span(ranges[key], ends[key])
        values = tensor.numpy().ravel()
        if ranges[key].quantizer.symmetric:
            values = np.abs(values)
        if high > low:
            bins = ((values - low) * (BINS / (high - low))).astype(np.int32)
            counts[key] += np.bincount(np.clip(bins, 0, BINS - 1), minlength=BINS)

    _run(q, arrays, batch_size, see)
    return counts


def _span(range_: Range, ends: tuple[float, float]) -> tuple[float, float]:
    """What its histogram spans."""
    return (0.0, ends[1]) if range_.quantizer.symmetric else ends


def percentile_range(
    counts: np.ndarray, low: float, high: float, symmetric: bool, percentile: float
) -> tuple[float, float]:
    """The range that holds the given share of a histogram.

    Args:
        counts: of |x| from 0 to `high` if symmetric, else of x from `low` to `high`.
        low, high: the whole range.
        symmetric: of the range.
        percentile: the share in per cent; below the upper and above the lower end.

    Returns:
        (low, high), which holds 0.
    """
    start = 0.0 if symmetric else low
    total, width = np.cumsum(counts), (high - start) / len(counts)

    def at(share: float) -> float:
        wanted = share * total[-1]
        index = int(np.searchsorted(total, wanted))
        before = total[index - 1] if index else 0.0
        inside = (wanted - before) / counts[index] if counts[index] else 0.0
        return start + width * (index + inside)

    upper = max(at(percentile / 100), 0.0)
    found = (-upper if symmetric else min(at(1 - percentile / 100), 0.0), upper)
    # Nearly all values are 0: the rest is what matters, then.
    return found if found[1] - found[0] > 0 else (low, high)


def least_squares_range(
    counts: np.ndarray, low: float, high: float, symmetric: bool
) -> tuple[float, float]:
    """The range with the least squared error of rounding and clipping.

    Tried are the `CANDIDATES` ranges i/n · [low, high].

    Args:
        counts: of |x| from 0 to `high` if symmetric, else of x from `low` to `high`.
        low, high: the whole range.
        symmetric: of the range.

    Returns:
        (low, high); of equals the widest.
    """
    start = 0.0 if symmetric else low
    middles = start + (np.arange(len(counts)) + 0.5) * (high - start) / len(counts)
    best, found = np.inf, (low, high)
    for part in np.arange(CANDIDATES, 0, -1) / CANDIDATES:
        if symmetric:
            scale, zero, last = part * high / 127, 0, 127
        else:
            scale = part * (high - low) / _LEVELS
            zero, last = int(np.round(-part * low / scale)), _LEVELS
        codes = np.clip(np.round(middles / scale) + zero, 0, last)
        error = float(np.sum(counts * (middles - (codes - zero) * scale) ** 2))
        if error < best:
            best, found = error, (part * low, part * high)
    return found


def beside_ties(values: np.ndarray, low: float, high: float) -> tuple[float, float]:
    """Widens a range by a few parts in 255 until few values lie between two of its codes.

    Pixels of 8 bits scaled to −1 … 1 all do: (x − 127.5) / 128 are the halves of steps of
    1/128. There each runtime rounds otherwise: fake quantization up, TFLite's kernels for
    tests away from 0, and its fast ones to even codes, which lose the lowest bit.

    Args:
        values: what an input of the model takes.
        low, high: its range, which holds 0.

    Returns:
        (low, high), the same for values that seldom lie between two codes.
    """
    # Its ends lie between two codes wherever they are as far from 0 as each other.
    inside = values[(values > low) & (values < high)].astype(np.float64)
    for wider in range(5):
        part = _LEVELS / (_LEVELS - wider)
        steps = inside / max(part * (high - low) / _LEVELS, SMALLEST)
        ties = np.abs(steps - np.floor(steps) - 0.5) < TIE
        if not inside.size or ties.mean() <= MOST_TIES:
            return part * low, part * high
    return low, high


def _assign(q: QuantizedModel, ends: Ends) -> None:
    """Writes the ranges; what was 0 throughout gets a range that does no harm."""
    notes = {}
    for key, range_ in _by_key(q).items():
        low, high = ends[key]
        if high - low < SMALLEST:
            low, high = (-1.0 if range_.quantizer.symmetric else 0.0), 1.0
            notes[range_.place] = f"0 in all calibration data: range set to [{low:g}, {high:g}]"
        range_.low.assign(low)
        range_.high.assign(max(high, SMALLEST))
    object.__setattr__(q, "_notes", notes)
