"""Number formatting: table cells, counts with SI prefixes, file sizes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

NONE = "–"  # shown for a missing number

Format = str | Callable[[Any], str]


def cell(value: Any, form: Format = "") -> str:
    """Formats a value on one line; None and NaN as a dash, integers with commas.

    Example:
        >>> from tfkd.results import cell
        >>> cell(1234), cell(0.5, ".3f"), cell(None), cell(float("nan")), cell("two\\nlines")
        ('1,234', '0.500', '–', '–', 'two lines')
    """
    if value is None or (isinstance(value, (float, np.floating)) and math.isnan(value)):
        return NONE
    if not isinstance(value, str):
        is_count = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
        value = form(value) if callable(form) else format(value, form or ("," if is_count else ""))
    return " ".join(value.splitlines())


def si(value: float | None, unit: str = "") -> str:
    """Formats a count with three digits and an SI prefix: 41_300_000 → "41.3 M".

    Example:
        >>> from tfkd.results import si
        >>> si(41_300_000), si(960), si(1_454), si(None)
        ('41.3 M', '960', '1.45 k', '–')
    """
    if value is None:
        return NONE
    for scale, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= scale * 0.9995:  # rounds to 1.00 of this prefix
            return f"{value / scale:#.3g}".rstrip(".") + f" {prefix}{unit}"
    return f"{value:,.0f}" + (f" {unit}" if unit else "")


def three_digits(value: float) -> str:
    """Formats a number with three decimal places, or more where these hold no three digits.

    Example:
        >>> from tfkd.results import three_digits
        >>> three_digits(0.0029146), three_digits(0.04), three_digits(12.0)
        ('0.00291', '0.0400', '12.000')
    """
    small = 0 < abs(value) < 0.1
    return f"{value:.{2 - math.floor(math.log10(abs(value))) if small else 3}f}"


def size_text(count: int | None) -> str:
    """Formats a number of bytes in KiB (1,024 bytes), or MiB from 1 MiB on.

    Example:
        >>> from tfkd.results import size_text
        >>> size_text(8_504), size_text(3 * 2**20), size_text(None)
        ('8.3 KiB', '3.0 MiB', '–')
    """
    if count is None:
        return NONE
    return f"{count / 2**10:.1f} KiB" if count < 2**20 else f"{count / 2**20:.1f} MiB"
