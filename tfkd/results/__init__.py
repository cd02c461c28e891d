"""One class behind everything that prints itself, is saved, or becomes a page.

A `Result` says what it consists of (`parts`): tables (`Grid`), sentences (`Lines`, or
plain strings) and pictures (`Plot`). From that come plain text, GitHub's Markdown, an
HTML page that loads nothing, values for JSON, and the files of `save`.
"""

from tfkd.results.formats import NONE, Format, cell, si, size_text
from tfkd.results.parts import WIDTH, Grid, Lines, Plot
from tfkd.results.result import Result, plain

__all__ = [
    "NONE",
    "WIDTH",
    "Format",
    "Grid",
    "Lines",
    "Plot",
    "Result",
    "cell",
    "plain",
    "si",
    "size_text",
]
