"""Base class of results: text, Markdown, HTML and JSON output from one description.

A `Result` lists its `parts`: tables (`Grid`), sentences (`Lines`, or plain strings) and
plots (`Plot`). From these it generates plain text, GitHub Markdown, a self-contained
HTML page, JSON values, and the files of `save`.
"""

from tfkd.results.formats import NONE, Format, cell, si, size_text, three_digits
from tfkd.results.paged import Paged
from tfkd.results.parts import WIDTH, Grid, Lines, Plot
from tfkd.results.restoring import restored
from tfkd.results.result import Result, plain
from tfkd.results.sections import Code, Gallery, Links, Section

__all__ = [
    "NONE", "WIDTH", "Code", "Format", "Gallery", "Grid", "Lines", "Links", "Paged", "Plot",
    "Result", "Section", "cell", "plain", "restored", "si", "size_text", "three_digits",
]  # fmt: skip
