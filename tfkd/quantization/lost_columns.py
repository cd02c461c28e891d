"""Columns of an output, such as boxes and scores, whose variation 8-bit rounding has lost.

In 8 bits an output has one scale. Where columns of unlike ranges share it, such as corners
in pixels and scores from 0 to 1, a step is as large as the whole range of the small ones,
although errors relative to the range of the whole output are tiny. So each small column is
compared on its own: it is lost if the error's root mean square is more than a quarter of the
column's standard deviation. A column that is rounded to n equal steps has an error of 1/n of
its deviation, so that those with fewer than about four steps are lost.

Columns with few steps are normal where all columns are of one kind, and small means rare:
probabilities, independent scores from 0 to 1, normalized embeddings. Such outputs are
recognized by their values. Among many channels, as of features, some are nearly silent, and
others a bit louder, down to the size of a step: of more than eight that vary, the lost ones must
belong to a group whose ranges lie ten times below those of the others.

Columns are the elements of the last axis. Some detectors have them before their positions: of
an output of rank 3 also the elements of the second axis are taken, if they are fewer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfkd.teachers import class_scores

# A small column has at most this part of the range of its whole output.
SMALL = 1 / 20
_LOST = 1 / 4  # of a column's standard deviation
_FEW, _APART = 8, 10
# A range below this part of a column's largest number may be rounding of float32.
_ROUNDING = 1e-5
_SHOWN = 6


def lost_columns(expected: np.ndarray, received: np.ndarray) -> list[dict[str, Any]]:
    """Compares each small column of an output with the same column after rounding.

    Args:
        expected: an output (N, ..., C), or (N, C, P) with C < P, in float.
        received: the same after rounding, as finite real numbers.

    Returns:
        For each lost column its index, `column`, along `axis`, its `range` and its
        `range_after` rounding, both (smallest, largest).

    Example:
        >>> prices, chances = np.linspace(0, 1000, 11), np.linspace(0.1, 0.9, 11)
        >>> values = np.stack([prices, chances], axis=1)
        >>> lost_columns(values, np.round(values / 4) * 4)
        [{'column': 1, 'axis': 1, 'range': [0.1, 0.9], 'range_after': [0.0, 0.0]}]
        >>> lost_columns(values, np.round(values / 0.1) * 0.1)
        []
    """
    shape, last = expected.shape, expected.ndim - 1
    turned = last == 2 and shape[1] < shape[2]
    for axis in (last, 1) if turned else (last,) * (last > 0):
        found = _along(np.moveaxis(expected, axis, -1), np.moveaxis(received, axis, -1))
        if found:
            return [{"column": row.pop("column"), "axis": axis, **row} for row in found]
    return []


def _along(expected: np.ndarray, received: np.ndarray) -> list[dict[str, Any]]:
    """`lost_columns` along the last axis."""
    if expected.shape[-1] < 2:
        return []
    want, got = (array.reshape(-1, array.shape[-1]) for array in (expected, received))
    low, high = (end.astype(np.float64) for end in (want.min(0), want.max(0)))
    ranges, most = high - low, np.maximum(np.abs(low), np.abs(high))
    small = (ranges > _ROUNDING * most) & (ranges <= SMALL * (high.max() - low.min()))
    columns = np.flatnonzero(small)
    if not len(columns) or _are_of_one_kind(expected):
        return []
    want, got = (array[:, columns].astype(np.float64) for array in (want, got))
    error = np.sqrt(np.square(got - want).mean(0))
    lost = columns[error > _LOST * want.std(0)]
    if not len(lost) or not _stand_apart(ranges, ranges[lost].max()):
        return []
    after = received.reshape(-1, received.shape[-1])[:, lost].astype(np.float64)
    return [
        {"column": int(c), "range": [float(low[c]), float(high[c])], "range_after": [least, most]}
        for c, least, most in zip(lost, after.min(0).tolist(), after.max(0).tolist(), strict=True)
    ]


def _are_of_one_kind(values: np.ndarray) -> bool:
    """Whether the numbers show that all columns have the same scale by their nature."""
    low, high = float(values.min()), float(values.max())
    return (
        not np.isfinite(high - low)
        or (low >= -_ROUNDING and high <= 1 + _ROUNDING)
        or class_scores.of_values(values) != class_scores.UNKNOWN
    )


def _stand_apart(ranges: np.ndarray, largest: float) -> bool:
    """Whether a gap lies above the largest range that is lost, if there are many columns."""
    above = np.sort(ranges[ranges >= largest])
    return np.count_nonzero(ranges) <= _FEW or bool((above[1:] >= _APART * above[:-1]).any())


def described(found: Sequence[Mapping[str, Any]], where: str) -> str:
    """A sentence on the results of `lost_columns`: which, their ranges, and what to do.

    Args:
        found: lost columns of one output.
        where: where they are lost: "the file".
    """
    low, high = _ends(found, "range")
    least, most = _ends(found, "range_after")
    one = len(found) == 1
    start = f"{'column' if one else 'columns'} {_numbers([row['column'] for row in found])} "
    start += f"of axis {found[0]['axis']} "
    if least == most:
        start += f"{'is' if one else 'are'} {least:.4g} everywhere and for every input in {where}"
    else:
        parts = "a large part of its range" if one else "large parts of their ranges"
        start += f"{'is' if one else 'are'} off by {parts} in {where} ({least:.4g} to {most:.4g})"
    return (
        f"{start}, while the Keras model's {'goes' if one else 'go'} from {low:.4g} to {high:.4g}: "
        "in 8 bits an output has one scale, and its steps are too large here. Give such columns an "
        "output of their own, scale all columns to like ranges, or stay in float (float16)"
    )


def _ends(found: Sequence[Mapping[str, Any]], key: str) -> tuple[float, float]:
    # -0 is shown as 0.
    return min(row[key][0] for row in found) + 0.0, max(row[key][1] for row in found) + 0.0


def _numbers(columns: Sequence[int]) -> str:
    """Indices as text, neighbours as "4 to 84"."""
    runs: list[list[int]] = []
    for column in columns:
        if runs and column == runs[-1][1] + 1:
            runs[-1][1] = column
        else:
            runs.append([column, column])
    texts = [str(a) if a == b else f"{a}, {b}" if a + 1 == b else f"{a} to {b}" for a, b in runs]
    more = [f"{len(texts) - _SHOWN} more"] if len(texts) > _SHOWN else []
    return ", ".join(texts[:_SHOWN] + more)
