"""Calibration: sets activation ranges from example data by min-max, percentile or MSE.

Guessed initial ranges cost accuracy for hundreds of training steps, because values outside
of them are clipped and have no gradient. So ranges are set before training, from the
activations that occur with quantized weights and unquantized activations.

References: Wu et al. 2020, Integer Quantization for Deep Learning Inference,
https://arxiv.org/abs/2004.09602 (min-max and percentiles); Nagel et al. 2021, A White Paper
on Neural Network Quantization, https://arxiv.org/abs/2106.08295 (mean squared error).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tfkd import checks, example_inputs
from tfkd.networks.accept import check_finite
from tfkd.quantization.fake_quant import SMALLEST, observing
from tfkd.quantization.lost_columns import described, lost_columns
from tfkd.quantization.norm_statistics import NormStatistics
from tfkd.quantization.quantized_model import (
    QuantizedModel,
    RangeVariables,
    check_quantized,
    range_variables,
)
from tfkd.teachers import class_scores
from tfkd.types import Data

METHODS = ("minmax", "percentile", "mse")
BINS = 4096  # of each histogram
CANDIDATES = 100  # ranges tried by "mse"
_LEVELS = 255  # steps between the lowest and the highest of 256 codes
# Values within this part of a step of the middle between two codes are ties, and at most this
# share of an input's values may be.
TIE, MOST_TIES = 1e-3, 0.1
_COMPARED = 64  # examples whose outputs are compared with those in float

Ends = dict[int, tuple[float, float]]  # id of the `low` variable of a range → (low, high)


def calibrate(
    q: QuantizedModel,
    data: Data,
    method: str = "minmax",
    *,
    batch_size: int = 64,
    percentile: float = 99.99,
    max_examples: int | None = None,
) -> None:
    """Sets the activation ranges of a quantized model; weights and statistics do not change.

    100 to 500 examples are usually enough. Calibration may be repeated at any time, with
    other data or another method. Warns if the moving statistics of batch normalizations do
    not fit the first examples: re-estimate them with `tfkd.pruning.recalibrate`. Warns if an
    output holds columns of so different ranges that rounding loses the small ones.

    Args:
        q: a model made by `quantize`.
        data: examples as the model takes them (preprocessed), in any form of
            `tfkd.example_inputs`.
        method: "minmax": the range of all values; "percentile": without outliers; "mse":
            the range with the smallest mean squared error of rounding and clipping, out
            of 100 candidates.
        batch_size: examples per forward pass.
        percentile: for "percentile": the percentage of |x| inside a symmetric range; for
            other ranges that of x below the upper end, and of x above the lower end.
        max_examples: maximum number of examples; None: as in `tfkd.example_inputs`.

    Raises:
        TypeError: if `q` is not a quantized model, or data are of the wrong type.
        ValueError: if there are no data, their shape is wrong, or they or the activations
            are NaN or infinite. The ranges are then unchanged.

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
    check_finite("q", q, but=ranges)
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
    _warn_of_lost_columns(q, arrays, batch_size)


def _warn_of_lost_columns(q: QuantizedModel, arrays: Mapping[str, np.ndarray], size: int) -> None:
    """Compares the outputs on some examples with those without rounded activations."""
    count = len(next(iter(arrays.values())))
    rows = np.linspace(0, count - 1, min(count, _COMPARED)).astype(int)
    some = {name: array[rows] for name, array in arrays.items()}
    with observing(lambda low, tensor: None):
        expected = _outputs(q, some, size)
    received = _outputs(q, some, size)
    kinds = class_scores.of_outputs(q, [class_scores.of_values(want) for want in expected])
    for name, want, got, kind in zip(q.output_names, expected, received, kinds, strict=True):
        found = [] if kind == class_scores.CLASSES else lost_columns(want, got)
        if found:
            where = "the quantized model"
            checks.warn(f"calibrate: output {name!r}: {described(found, where)}.")


def _by_key(q: QuantizedModel) -> dict[int, RangeVariables]:
    return {id(range_.low): range_ for range_ in range_variables(q)}


def _run(
    q: QuantizedModel,
    arrays: Mapping[str, np.ndarray],
    batch_size: int,
    see: Callable[[int, Any], None],
) -> None:
    """Calls `see(key, tensor)` with every activation of every batch."""
    with observing(lambda low, tensor: see(id(low), tensor)):
        for _ in _batches(q, arrays, batch_size):
            pass


def _outputs(
    q: QuantizedModel, arrays: Mapping[str, np.ndarray], batch_size: int
) -> list[np.ndarray]:
    """The outputs for all examples, in order."""
    flat = [tf.nest.flatten(outputs) for outputs in _batches(q, arrays, batch_size)]
    return [np.concatenate(parts) for parts in zip(*flat, strict=True)]


def _batches(q: QuantizedModel, arrays: Mapping[str, np.ndarray], batch_size: int) -> Iterator[Any]:
    """The outputs of batch after batch."""
    count = len(next(iter(arrays.values())))
    fixed = next((tensor.shape[0] for tensor in q.inputs if tensor.shape[0]), None)
    for start in range(0, count, fixed or batch_size):
        rows = np.arange(start, start + fixed if fixed else min(start + batch_size, count))
        # A batch of a fixed size is filled up from the beginning.
        batch = {k: tf.constant(v[rows % count]) for k, v in arrays.items()}
        q.reset_states()
        yield q(example_inputs.packed(q, batch), training=False)
    q.reset_states()


def _ends(q: QuantizedModel, arrays: Mapping[str, np.ndarray], batch_size: int) -> Ends:
    """The minimum and maximum of each activation."""
    ranges = _by_key(q)
    ends: Ends = {}

    def see(key: int, tensor: Any) -> None:
        low, high = float(tf.reduce_min(tensor)), float(tf.reduce_max(tensor))
        if not np.isfinite(low + high):
            raise ValueError(
                f"`data`: expected finite activations, received NaN or infinity at "
                f"{ranges[key].layer.name!r}. Check the weights of the model, and whether the "
                "inputs are scaled as in training."
            )
        before = ends.get(key, (0.0, 0.0))  # 0 must be representable exactly.
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
    """Histograms of the activations over their ranges; of |x| for symmetric ranges."""
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


def _span(range_: RangeVariables, ends: tuple[float, float]) -> tuple[float, float]:
    """The interval that the histogram of a range covers."""
    return (0.0, ends[1]) if range_.quantizer.symmetric else ends


def percentile_range(
    counts: np.ndarray, low: float, high: float, symmetric: bool, percentile: float
) -> tuple[float, float]:
    """The range that contains a given percentage of the values of a histogram.

    Args:
        counts: histogram of |x| from 0 to `high` if symmetric, else of x from `low` to
            `high`.
        low, high: the full range.
        symmetric: whether the range is symmetric.
        percentile: percentage of the values below the upper end and above the lower end.

    Returns:
        (low, high), which contains 0.

    Example:
        >>> found = percentile_range(np.ones(100), 0.0, 10.0, symmetric=False, percentile=90.0)
        >>> [float(end) for end in found]
        [0.0, 9.0]
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
    # Nearly all values are 0: use the full range, for the sake of the others.
    return found if found[1] - found[0] > 0 else (low, high)


def least_squares_range(
    counts: np.ndarray, low: float, high: float, symmetric: bool
) -> tuple[float, float]:
    """The range with the smallest mean squared error of rounding and clipping.

    The candidates are the ranges i/n · [low, high] for i = 1 … n, n = `CANDIDATES`.

    Args:
        counts: histogram of |x| from 0 to `high` if symmetric, else of x from `low` to
            `high`.
        low, high: the full range.
        symmetric: whether the range is symmetric.

    Returns:
        (low, high); the widest one if errors are equal.
    """
    start = 0.0 if symmetric else low
    centers = start + (np.arange(len(counts)) + 0.5) * (high - start) / len(counts)
    best, found = np.inf, (low, high)
    for part in np.arange(CANDIDATES, 0, -1) / CANDIDATES:
        if symmetric:
            scale, zero, last = part * high / 127, 0, 127
        else:
            scale = part * (high - low) / _LEVELS
            zero, last = int(np.round(-part * low / scale)), _LEVELS
        codes = np.clip(np.round(centers / scale) + zero, 0, last)
        error = float(np.sum(counts * (centers - (codes - zero) * scale) ** 2))
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
    """Sets the range variables; activations that were always 0 get a default range."""
    notes = {}
    for key, range_ in _by_key(q).items():
        low, high = ends[key]
        if high - low < SMALLEST:
            low, high = (-1.0 if range_.quantizer.symmetric else 0.0), 1.0
            notes[range_.place] = f"0 in all calibration data: range set to [{low:g}, {high:g}]"
        range_.low.assign(low)
        range_.high.assign(max(high, SMALLEST))
    object.__setattr__(q, "_notes", notes)
