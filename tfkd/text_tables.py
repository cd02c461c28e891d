"""Plain text tables and number formats that plans and reports share."""

from __future__ import annotations

from collections.abc import Collection, Sequence

NONE = "–"  # where there is no number


def aligned(
    lines: Sequence[Sequence[str]],
    left: int | Collection[int] = 1,
    rules_after: Sequence[int] = (0,),
) -> str:
    """Lays out rows of cells in aligned columns, two spaces apart.

    Args:
        lines: rows of equal length; the first is usually the head.
        left: how many columns, from the first, are aligned to the left, or the
            indices of those that are; the others are numbers and are aligned to
            the right.
        rules_after: indices of the rows that a dashed line follows.

    Returns:
        The text, without spaces at line ends.

    Example:
        >>> from tfkd.text_tables import aligned
        >>> print(aligned([("name", "n"), ("a", "10")]))
        name   n
        ----  --
        a     10
    """
    to_left = range(left) if isinstance(left, int) else left
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    texts = []
    for index, line in enumerate(lines):
        cells = [
            cell.ljust(width) if column in to_left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        texts.append("  ".join(cells).rstrip())
        if index in rules_after:
            texts.append("  ".join("-" * width for width in widths))
    return "\n".join(texts)


def si(value: float | None, unit: str = "") -> str:
    """Formats a count with three digits and a prefix: 41_300_000 → "41.3 M".

    Example:
        >>> from tfkd.text_tables import si
        >>> si(41_300_000), si(960), si(1_454), si(None)
        ('41.3 M', '960', '1.45 k', '–')
    """
    if value is None:
        return NONE
    for scale, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= scale * 0.9995:
            return f"{value / scale:#.3g}".rstrip(".") + f" {prefix}{unit}"
    return f"{value:,.0f}" + (f" {unit}" if unit else "")


def size_text(count: int | None) -> str:
    """Formats a number of bytes in KiB (1,024 bytes), or MiB from 1 MiB on.

    Example:
        >>> from tfkd.text_tables import size_text
        >>> size_text(8_504), size_text(3 * 2**20), size_text(None)
        ('8.3 KiB', '3.0 MiB', '–')
    """
    if count is None:
        return NONE
    return f"{count / 2**10:.1f} KiB" if count < 2**20 else f"{count / 2**20:.1f} MiB"
