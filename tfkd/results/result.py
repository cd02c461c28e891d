"""The class that prints, saves and becomes a page, and values made fit for JSON."""

from __future__ import annotations

import dataclasses
import html
import math
import os
import pathlib
import re
import tempfile
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import numpy as np

from tfkd import artifacts
from tfkd.results.pages import PAGE, STYLE, element, figure
from tfkd.results.parts import Grid, Lines, Plot


class Result:
    """What `print` shows as a table, and `save` writes as Markdown, JSON and a page.

    A subclass, mostly a frozen dataclass, gives its `parts`, and `to_dict` if its fields
    are not all that is to be known. `title` is that of the page, `file_name` that of the
    files without their ending; both are made of the class's name unless they are given.

    Example:
        >>> import dataclasses
        >>> from tfkd import results
        >>> @dataclasses.dataclass(frozen=True)
        ... class Sizes(results.Result):
        ...     sizes: dict
        ...     def parts(self):
        ...         return [results.Grid(("file", "bytes"), self.sizes.items()), "Two files."]
        >>> print(Sizes({"a": 12_000, "b": float("nan")}))
        file   bytes
        ----  ------
        a     12,000
        b          –
        <BLANKLINE>
        Two files.
        >>> Sizes({"b": float("nan")}).to_dict()
        {'sizes': {'b': None}}
    """

    title: ClassVar[str]
    file_name: ClassVar[str]

    def __init_subclass__(cls, title: str = "", file_name: str = "") -> None:
        """Names the page and the files: `LayerChoice`, "Layer choice", `layer_choice.md`."""
        words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", cls.__name__).lower()
        cls.title = title or words.capitalize()
        cls.file_name = file_name or words.replace(" ", "_")

    def parts(self) -> Iterable[Grid | Lines | str]:
        """What there is to read, in order; a string is a paragraph. By default, the fields."""
        return [Grid((), [*self.to_dict().items()], left=2)]

    def plots(self) -> Iterable[Plot]:
        """What there is to draw."""
        return ()

    def subtitle(self) -> str:
        """A sentence under the page's title."""
        return ""

    def to_dict(self) -> dict[str, Any]:
        """All that is known, in full precision, of what JSON can hold; NaN is None.

        By default these are the fields of the dataclass, without those that its `repr`
        leaves out.
        """
        return _fields(self)

    def _parts(self) -> list[Grid | Lines]:
        return [Lines([part]) if isinstance(part, str) else part for part in self.parts()]

    def text(self) -> str:
        """Plain text with aligned columns."""
        return "\n\n".join(filter(None, (part.text() for part in self._parts())))

    __str__ = text

    def markdown(self) -> str:
        """GitHub's Markdown."""
        return "\n\n".join(filter(None, (part.markdown() for part in self._parts()))) + "\n"

    def html(self, plots: bool = True) -> str:
        """A page for a browser, one file that loads nothing.

        Args:
            plots: False to leave the pictures, and matplotlib, out.

        Raises:
            ImportError: if there is something to plot and no matplotlib.
        """
        with tempfile.TemporaryDirectory() as folder:
            return self._page(self.draw(folder) if plots else {})

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return element("div", element("style", STYLE) + self._body(), {"class": "tfkd"})

    def _page(self, figures: Mapping[str, pathlib.Path]) -> str:
        title, sub = html.escape(self.title), html.escape(self.subtitle())
        body = element("h1", title) + (element("p", sub, {"class": "sub"}) if sub else "")
        found = "".join(figure(shown, path) for shown, path in figures.items())
        body += self._body() + (element("div", found, {"class": "figures"}) if found else "")
        return PAGE.format(title=title, style=STYLE, body=body)

    def _body(self) -> str:
        return "".join(part.html() for part in self._parts())

    def draw(self, folder: str | os.PathLike) -> dict[str, pathlib.Path]:
        """Draws the `plots` as PNGs into a folder; returns what each shows → its file."""
        found = {}
        for plot in self.plots():
            found[plot.title] = pathlib.Path(folder) / f"{plot.name}.png"
            plot.draw(found[plot.title])
        return found

    def save(self, folder: str | os.PathLike, plots: bool = True) -> pathlib.Path:
        """Writes Markdown, JSON, a page and the pictures, each file whole or not at all.

        The page holds the pictures too, so that it can be sent alone.

        Args:
            folder: made if need be. The files are named by `file_name`.
            plots: False to leave the pictures, and matplotlib, out.

        Returns:
            The folder.

        Raises:
            ImportError: if there is something to plot and no matplotlib.
        """
        path = pathlib.Path(folder) / self.file_name
        artifacts.write_text(path.with_name(f"{self.file_name}.md"), self.markdown())
        artifacts.write_json(path.with_name(f"{self.file_name}.json"), self.to_dict())
        page = self._page(self.draw(folder) if plots else {})
        artifacts.write_text(path.with_name(f"{self.file_name}.html"), page)
        return pathlib.Path(folder)


def _fields(value: Any) -> dict[str, Any]:
    fields = (field.name for field in dataclasses.fields(value) if field.repr)
    return {name: plain(getattr(value, name)) for name in fields}


def plain(value: Any) -> Any:
    """`value` as what JSON can hold.

    What has `to_dict`, and dataclasses, become dicts, sequences and arrays lists, NumPy's
    numbers Python's, NaN and infinity None, and all else (paths, types, functions) text.
    """
    if hasattr(value, "to_dict") and not isinstance(value, type):
        return value.to_dict()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _fields(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (np.ndarray, np.generic)):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (str, int)) else _name(value)


def _name(value: Any) -> str:
    return getattr(value, "__name__", str(value))
