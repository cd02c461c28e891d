"""How the tables of models are laid out: plain text, Markdown, and rich.

A table's head and rows are cells of text; the first column is a name, all
others are numbers. What stands below it are paragraphs.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from tfkd.text_tables import aligned

WIDTH = 100  # columns of a terminal
NAME_WIDTH = 12  # a name is folded down to this


def text(head: Sequence[str], rows: Sequence[Sequence[str]], width: int = WIDTH) -> str:
    """Aligned columns; names are folded where the table would be wider than `width`.

    Example:
        >>> from tfkd.report import printing
        >>> rows = [("a student of eight layers", "1.0")]
        >>> print(printing.text(("model", "p50"), rows, width=20))
        model         p50
        ------------  ---
        a student of  1.0
        eight layers
    """
    others = [max(map(len, column)) + 2 for column in zip(head, *rows, strict=True)][1:]
    room = max(NAME_WIDTH, width - sum(others))
    lines = [tuple(head)]
    for name, *numbers in rows:
        first, *more = textwrap.wrap(name, room) or [name]
        lines.append((first, *numbers))
        lines += [(part, *[""] * len(numbers)) for part in more]
    return aligned(lines)


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table in GitHub's Markdown; bars in cells are escaped."""
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    for row in rows:
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |")
    return lines


def show(head: Sequence[str], rows: Sequence[Sequence[str]], paragraphs: Sequence[str]) -> None:
    """Prints a table: with rich where it is installed, else as plain text."""
    try:
        from rich import box
        from rich.console import Console
        from rich.table import Table as RichTable
    except ImportError:
        print("\n\n".join([text(head, rows), *paragraphs]))
        return
    table = RichTable(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column, name in enumerate(head):
        # Numbers stay whole on a narrow terminal; only names may be folded.
        table.add_column(name, justify="right" if column else "left", no_wrap=bool(column))
    for row in rows:
        table.add_row(*row)
    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:  # a log, of which rich would think that it has 80 columns
        console.width = max(console.width, WIDTH)
    console.print(table)
    console.print("\n\n".join(paragraphs))


def machine_line(machine: Mapping[str, Any]) -> str:
    """One sentence of `tfkd.report.machine()`: processor, cores, versions."""
    versions = machine.get("versions", {})
    parts = [f"{name} {version}" for name, version in versions.items()]
    where = f"{machine.get('processor')}, {machine.get('cores')} cores"
    return f"Measured on {where}; {', '.join(parts)}."
