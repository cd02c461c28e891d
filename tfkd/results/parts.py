"""Parts of a result: tables and sentences, rendered as text, Markdown and HTML; plots."""

from __future__ import annotations

import dataclasses
import html
import pathlib
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from tfkd.results.formats import Format, cell
from tfkd.results.pages import element, head_style

WIDTH = 100  # largest width of a table in characters
NAME_WIDTH = 12  # smallest width to which the first column is wrapped
# Where names may be broken: behind spaces, and behind punctuation before a letter.
_BREAKS = re.compile(r"(?<=\s)(?=\S)|(?<=[_/.:-])(?=[^\W\d_])")


@dataclasses.dataclass(frozen=True)
class Grid:
    """A table.

    Attributes:
        head: names of the columns; empty for rows of (name, value).
        rows: values, formatted by `cell`.
        formats: column → format specification, such as ".3f", or a function value → text.
        left: number of leading columns that hold text, or the indices of such columns; the
            others are numbers and right-aligned.
        totals: number of rows at the end below a rule.
        tags: row → (word, explanation or "") pairs that a page shows beside its name.

    Example:
        >>> from tfkd.results.parts import Grid
        >>> print(Grid(("name", "MACs"), [("a|b", 1000), ("c", None)]).markdown())
        | name | MACs |
        |---|---:|
        | a\\|b | 1,000 |
        | c | – |
    """

    head: Sequence[str]
    rows: Collection[Sequence[Any]]
    formats: Mapping[str, Format] = dataclasses.field(default_factory=dict)
    left: int | Collection[int] = 1
    totals: int = 0
    tags: Mapping[int, Sequence[tuple[str, str]]] = dataclasses.field(default_factory=dict)

    def cells(self) -> list[list[str]]:
        """The rows as formatted text, without the head."""
        forms = [self.formats.get(name, "") for name in self.head]
        pairs = (zip(row, forms or [""] * len(row), strict=True) for row in self.rows)
        return [[cell(value, form) for value, form in row] for row in pairs]

    def _is_left(self, column: int) -> bool:
        return column < self.left if isinstance(self.left, int) else column in self.left

    def text(self) -> str:
        """Aligned columns; names are wrapped if the table would be wider than `WIDTH`."""
        lines = [[cell(name) for name in self.head]] if self.head else []
        lines += self.cells()
        if not lines:
            return ""
        ends = list(range(len(lines)))
        if self.head and self.left == 1:
            lines, ends = _folded(lines)
        rules = ends[: len(self.head[:1])] + ([ends[-1 - self.totals]] if self.totals else [])
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        sides = [str.ljust if self._is_left(i) else str.rjust for i in range(len(widths))]
        texts = []
        for index, line in enumerate(lines):
            padded = (pad(x, width) for pad, x, width in zip(sides, line, widths, strict=True))
            texts.append("  ".join(padded).rstrip())
            if index in rules:
                texts.append("  ".join("-" * width for width in widths))
        return "\n".join(texts)

    def markdown(self) -> str:
        """A table in GitHub's Markdown."""
        rows = self.cells()
        columns = len(self.head) or max(map(len, rows), default=0)
        rule = "".join("---|" if self._is_left(i) else "---:|" for i in range(columns))
        lines = [[cell(name) for name in self.head] or [""] * columns, *rows]
        texts = ["| " + " | ".join(map(_escaped, line)) + " |" for line in lines]
        return "\n".join([texts[0], f"|{rule}", *texts[1:]]) if columns else ""

    def html(self) -> str:
        """A `<table>` in a card."""
        tags = self.tags
        names = list(map(cell, self.head))
        rows = [self._html_row("td", row, tags.get(i, ())) for i, row in enumerate(self.cells())]
        last = len(rows) - self.totals
        head = [self._html_row("th", names)] if names else []
        groups = {"thead": head, "tbody": rows[:last], "tfoot": rows[last:]}
        body = "".join(element(tag, "\n".join(part)) for tag, part in groups.items() if part)
        # On narrow screens each row of a table with a head becomes a list of names and values.
        style = {"class": "headed", "style": head_style(names)} if names else {}
        return element("section", element("table", body), style)

    def _html_row(self, tag: str, row: Sequence[str], tags: Any = ()) -> str:
        texts = [html.escape(text) for text in row]
        spans = [element("span", html.escape(x), {"class": "tag", "title": y}) for x, y in tags]
        if spans:
            texts[0] += element("div", "".join(spans))
        sides = ("left" if self._is_left(i) else "" for i in range(len(texts)))
        cells = (element(tag, x, {"class": y}) for x, y in zip(texts, sides, strict=True))
        return element("tr", "".join(cells))


def _folded(lines: Sequence[Sequence[str]]) -> tuple[list[list[str]], list[int]]:
    """Lines of a table with long names wrapped, and the index of the last line of each row."""
    others = [max(map(len, column)) + 2 for column in zip(*lines, strict=True)][1:]
    room = max(NAME_WIDTH, WIDTH - sum(others))
    folded, ends = [], []
    for name, *numbers in lines:
        first, *more = _wrapped(name, room)
        folded.append([first, *numbers])
        folded += [[part, *[""] * len(numbers)] for part in more]
        ends.append(len(folded) - 1)
    return folded, ends


def _wrapped(name: str, room: int) -> list[str]:
    """Lines of at most `room` characters, or as wide as a word: no break is inside of one."""
    lines = [""]
    for word in _BREAKS.split(name):
        # What has no end is broken anywhere.
        for start in range(0, max(len(word), 1), WIDTH // 2):
            part = word[start : start + WIDTH // 2]
            if lines[-1] and len((lines[-1] + part).rstrip()) > room:
                lines.append("")
            lines[-1] += part
    return [line.rstrip() for line in lines]


def _escaped(text: str) -> str:
    """Escapes a Markdown cell: bars, which would end it, and HTML tags."""
    return re.sub(r"(\\*)([|<])", r"\1\1\\\2", text)


@dataclasses.dataclass(frozen=True)
class Lines:
    """Sentences.

    Attributes:
        lines: one per line in plain text, one paragraph each in Markdown and HTML.
        title: heading on a page; with a title, Markdown and HTML show a list.
        printed: whether plain text includes them; files and pages always do.
    """

    lines: Sequence[str]
    title: str = ""
    printed: bool = True

    def text(self) -> str:
        """The lines."""
        return "\n".join(self.lines) if self.printed else ""

    def markdown(self) -> str:
        """Paragraphs, or the items of a list."""
        if self.title:
            return "\n".join(f"- {line}" for line in self.lines)
        return "\n\n".join(self.lines)

    def html(self) -> str:
        """Paragraphs, or a list under its title."""
        lines = [html.escape(line) for line in self.lines]
        if not self.title:
            found = "".join(element("p", line) for line in lines)
            return element("div", found, {"class": "notes"}) if lines else ""
        items = element("ul", "".join(element("li", line) for line in lines))
        return element("section", element("h2", html.escape(self.title)) + items) if lines else ""


@dataclasses.dataclass(frozen=True)
class Plot:
    """A plot, drawn on demand.

    Attributes:
        name: file name without suffix.
        title: title of the plot.
        draw: function that writes a PNG to a path.
    """

    name: str
    title: str
    draw: Callable[[pathlib.Path], Any]
