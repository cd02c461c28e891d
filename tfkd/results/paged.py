"""`Paged`, the base class of results that are a long page with headings and plots in place."""

from __future__ import annotations

import html
import importlib.util
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

from tfkd import artifacts, checks
from tfkd.results.pages import PAGE, STYLE, element
from tfkd.results.parts import Plot
from tfkd.results.result import Result
from tfkd.results.sections import Section


class Paged(Result):
    """A result with `sections`, each with its plots, and a headline above them.

    Example:
        >>> from tfkd import results
        >>> class Two(results.Paged):
        ...     def headline(self):
        ...         return "DONE: both."
        ...     def parts(self):
        ...         return ["Both."]
        ...     def sections(self):
        ...         return [results.Section(x, parts=[results.Lines([x])]) for x in ("A", "B")]
        >>> print(Two().markdown())
        # Two
        <BLANKLINE>
        **DONE: both.**
        <BLANKLINE>
        ## A
        <BLANKLINE>
        A
        <BLANKLINE>
        ## B
        <BLANKLINE>
        B
        <BLANKLINE>
    """

    def sections(self) -> Sequence[Section]:
        """The sections of the page, in order; those without anything to show are left out."""
        raise NotImplementedError

    def headline(self) -> str:
        """The sentence at the top; a word before a colon is the class of its card."""
        return ""

    def plots(self) -> Iterator[Plot]:
        """The plots of all sections."""
        for section in self.sections():
            yield from section.plots

    def markdown(self, figures: Mapping[str, pathlib.Path] | None = None) -> str:
        """GitHub Markdown with all sections.

        Args:
            figures: title of a plot → its file beside the Markdown, for those that are shown.
        """
        figures = figures or {}
        headline = self.headline()
        parts = [f"# {self.title}", self.subtitle(), f"**{headline}**" if headline else ""]
        parts += [section.markdown(figures) for section in self._shown(figures)]
        return "\n\n".join(filter(None, parts)) + "\n"

    def _shown(self, figures: Iterable[str]) -> list[Section]:
        """The sections that have anything to show beside the plots that were not drawn."""
        return [
            section
            for section in self.sections()
            if section.parts or section.folded or any(p.title in figures for p in section.plots)
        ]

    def _body(self) -> str:
        return self._content({})

    def _content(self, figures: Mapping[str, pathlib.Path]) -> str:
        sections = self._shown(figures)
        links = (element("a", html.escape(s.title), {"href": f"#{s.anchor}"}) for s in sections)
        body = element("nav", "".join(links), {"aria-label": "Sections"})
        status, colon, rest = self.headline().partition(": ")
        if status:
            said = element("strong", html.escape(status)) if colon else html.escape(status)
            kind = f"headline {status.lower()}" if colon else "headline"
            body = element("section", said + html.escape(rest), {"class": kind}) + body
        return body + "".join(section.html(figures) for section in sections)

    def _page(self, figures: Mapping[str, pathlib.Path]) -> str:
        title, sub = html.escape(self.title), html.escape(self.subtitle())
        body = element("h1", title) + (element("p", sub, {"class": "sub"}) if sub else "")
        return PAGE.format(title=title, style=STYLE, body=body + self._content(figures))

    def save(self, folder: str | os.PathLike, plots: bool | None = None) -> pathlib.Path:
        """Writes Markdown, JSON, an HTML page and the plots, each file atomically.

        The plots are also embedded in the page, which can be shared on its own.

        Args:
            folder: created if missing. The files are named by `file_name`.
            plots: False to omit the plots; None: omit them, with a warning, if matplotlib is
                not installed.

        Returns:
            The folder.

        Raises:
            ImportError: if `plots` is True and matplotlib is not installed.
        """
        if plots is None:
            plots = importlib.util.find_spec("matplotlib") is not None
            if not plots:
                fix = 'Install it with `pip install "tfkd[cli]"` and save it again.'
                checks.warn(f"{self.title}: without plots, as matplotlib is not installed. {fix}")
        folder = pathlib.Path(folder)
        figures = self.draw(folder) if plots else {}
        artifacts.write_text(folder / f"{self.file_name}.md", self.markdown(figures))
        artifacts.write_json(folder / f"{self.file_name}.json", self.to_dict())
        artifacts.write_text(folder / f"{self.file_name}.html", self._page(figures))
        return folder
