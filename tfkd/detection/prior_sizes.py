"""Sizes of a cell's anchors, from scales and aspect ratios or as given, with their checks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from tfkd import checks

Sizes = tuple[tuple[tuple[float, float], ...], ...]


def sequence(name: str, value: object, expected: str) -> tuple:
    """Accepts a list, tuple or array; returns it as a tuple."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
        raise checks.type_error(name, expected, value)
    if not value:
        raise checks.value_error(name, expected, value)
    return tuple(value)


def pair(name: str, value: int | Sequence[int]) -> tuple[int, int]:
    """Accepts (height, width), or one number for both."""
    if not isinstance(value, (Sequence, np.ndarray)) or isinstance(value, (str, bytes)):
        return (checks.positive_int(name, value),) * 2
    sides = tuple(checks.positive_int(name, side) for side in value)
    if len(sides) != 2:
        raise checks.value_error(name, "(height, width), or one integer for both", value)
    return sides


def _by_level(
    name: str, value: Sequence[float | Sequence[float]] | None, levels: int
) -> tuple[tuple[float, ...], ...]:
    """A tuple of positive numbers for each level; one tuple of numbers stands for all."""
    value = sequence(name, value, "a sequence of numbers above 0, for each level")
    if all(checks.is_number(item) for item in value):
        # A flat sequence holds one scale for each level, but the ratios of every level.
        value = tuple((v,) for v in value) if name == "scales" else (value,) * levels
    if len(value) != levels:
        raise checks.value_error(name, f"{levels} entries, one for each level", value)
    rows = []
    for row in value:
        row = (row,) if checks.is_number(row) else sequence(name, row, "numbers above 0")
        rows.append(tuple(float(checks.positive(name, item)) for item in row))
    return tuple(rows)


def _extra(extra: Sequence[float | None] | None, levels: int) -> tuple[float | None, ...]:
    """One scale, or None, for each level."""
    if extra is None:
        return (None,) * levels
    row = sequence("extra", extra, "a scale, or None, for each level")
    if len(row) != levels:
        raise checks.value_error("extra", f"{levels} scales or None, one for each level", extra)
    return tuple(v if v is None else float(checks.positive("extra", v)) for v in row)


def from_scales(
    scales: Sequence[float | Sequence[float]] | None,
    ratios: Sequence[float | Sequence[float]],
    extra: Sequence[float | None] | None,
    aspect: float,
    levels: int,
) -> Sizes:
    """Returns the (width, height) of the boxes of one cell, by level."""
    checks.positive("aspect", aspect)
    rows, ratio_rows = _by_level("scales", scales, levels), _by_level("ratios", ratios, levels)
    sizes = []
    for row, shapes, more in zip(rows, ratio_rows, _extra(extra, levels), strict=True):
        pairs = [(s, r) for s in row for r in shapes]
        if more is not None:
            pairs.append((more, 1.0))
        # A box of scale s has area s², whatever its shape.
        roots = [(s, math.sqrt(r * aspect)) for s, r in pairs]
        sizes.append(tuple((s * root, s / root) for s, root in roots))
    return tuple(sizes)


def given_sizes(sizes: Sequence[Sequence[Sequence[float]]], levels: int) -> Sizes:
    """Checks given sizes; returns them as tuples."""
    rows = sequence("sizes", sizes, "a sequence of (width, height) for each level")
    if len(rows) != levels:
        raise checks.value_error("sizes", f"{levels} entries, one for each level", sizes)
    found = []
    for row in rows:
        pairs = [sequence("sizes", p, "(width, height)") for p in sequence("sizes", row, "pairs")]
        if any(len(p) != 2 for p in pairs):
            raise checks.value_error("sizes", "(width, height) pairs", row)
        w_h = ([float(checks.positive("sizes", side)) for side in p] for p in pairs)
        found.append(tuple((w, h) for w, h in w_h))
    return tuple(found)
