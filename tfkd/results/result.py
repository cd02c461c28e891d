"""`Result`, the base class of printable and savable results, and conversion to JSON values."""

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
    """A result that `print` shows as text, and `save` writes as Markdown, JSON and HTML.

    Subclasses, usually frozen dataclasses, override `parts`, and `to_dict` if the JSON
    output needs more than the fields. `title` is the title of the page, `file_name` the
    file name without suffix; by default both are derived from the class name.

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
        """Sets title and file name: `LayerChoice` → "Layer choice", `layer_choice.md`."""
        words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", cls.__name__).lower()
        cls.title = title or words.capitalize()
        cls.file_name = file_name or words.replace(" ", "_")

    def parts(self) -> Iterable[Grid | Lines | str]:
        """Tables and sentences in order; a string is a paragraph. Default: the fields."""
        return [Grid((), [*self.to_dict().items()], left=2)]

    def plots(self) -> Iterable[Plot]:
        """Plots of the result."""
        return ()

    def subtitle(self) -> str:
        """A sentence under the page's title."""
        return ""

    def to_dict(self) -> dict[str, Any]:
        """The result in full precision as JSON values, with None for NaN.

        By default these are the fields of the dataclass, except those with `repr=False`
        that are not marked by `metadata={"saved": True}`.
        """
        return _fields(self)

    def _parts(self) -> list[Grid | Lines]:
        return [Lines([part]) if isinstance(part, str) else part for part in self.parts()]

    def text(self) -> str:
        """Plain text with aligned columns."""
        return "\n\n".join(filter(None, (part.text() for part in self._parts())))

    __str__ = text

    def markdown(self) -> str:
        """GitHub Markdown."""
        return "\n\n".join(filter(None, (part.markdown() for part in self._parts()))) + "\n"

    def html(self, plots: bool = True) -> str:
        """A self-contained HTML page.

        Args:
            plots: False to omit the plots, for which matplotlib is needed.

        Raises:
            ImportError: if there are plots and matplotlib is not installed.
        """
        with tempfile.TemporaryDirectory() as folder:
            return self._page(self.draw(folder) if plots else {})

    def _repr_html_(self) -> str:
        """The HTML that notebooks show."""
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
        """Draws the `plots` as PNGs into a folder; returns title → file."""
        found = {}
        for plot in self.plots():
            found[plot.title] = pathlib.Path(folder) / f"{plot.name}.png"
            plot.draw(found[plot.title])
        return found

    def save(self, folder: str | os.PathLike, plots: bool = True) -> pathlib.Path:
        """Writes Markdown, JSON, an HTML page and the plots, each file atomically.

        The plots are also embedded in the page, which can be shared on its own.

        Args:
            folder: created if missing. The files are named by `file_name`.
            plots: False to omit the plots, for which matplotlib is needed.

        Returns:
            The folder.

        Raises:
            ImportError: if there are plots and matplotlib is not installed.
        """
        path = pathlib.Path(folder) / self.file_name
        artifacts.write_text(path.with_name(f"{self.file_name}.md"), self.markdown())
        artifacts.write_json(path.with_name(f"{self.file_name}.json"), self.to_dict())
        page = self._page(self.draw(folder) if plots else {})
        artifacts.write_text(path.with_name(f"{self.file_name}.html"), page)
        return pathlib.Path(folder)


def _fields(value: Any) -> dict[str, Any]:
    shown = (f for f in dataclasses.fields(value) if f.repr or f.metadata.get("saved"))
    return {field.name: plain(getattr(value, field.name)) for field in shown}


def plain(value: Any) -> Any:
    """Converts a value to JSON values.

    Dataclasses and objects with `to_dict` become dicts, sequences and arrays lists, NumPy
    scalars Python numbers, NaN and infinity None; anything else (paths, types, functions)
    becomes text.
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
