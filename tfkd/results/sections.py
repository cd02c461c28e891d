"""Sections of a long page: headings, plots in place, pictures with captions, links, code."""

from __future__ import annotations

import dataclasses
import html
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from tfkd.results.pages import element, figure
from tfkd.results.parts import Grid, Lines, Plot


@dataclasses.dataclass(frozen=True)
class Links:
    """Names that link to files.

    Attributes:
        targets: name → path relative to the page, or a URL.
        title: heading of the card.
    """

    targets: Mapping[str, str]
    title: str = ""

    def text(self) -> str:
        """A name and its target per line."""
        return "\n".join(f"{name}: {target}" for name, target in self.targets.items())

    def markdown(self) -> str:
        """A list of links."""
        return "\n".join(f"- [{n}](<{t}>)" for n, t in self.targets.items())

    def html(self) -> str:
        """A list of links in a card."""
        items = (
            element("li", element("a", html.escape(name), {"href": target}).rstrip())
            for name, target in self.targets.items()
        )
        heading = element("h2", html.escape(self.title)) if self.title else ""
        return element("section", heading + element("ul", "".join(items)))


@dataclasses.dataclass(frozen=True)
class Code:
    """Preformatted text, such as a command.

    Attributes:
        code: the text.
        language: its language in Markdown.
    """

    code: str
    language: str = ""

    def text(self) -> str:
        """The text."""
        return self.code

    def markdown(self) -> str:
        """A fenced block."""
        fence = max(re.findall(r"`{3,}", self.code), key=len, default="``")
        return f"{fence}`{self.language}\n{self.code}\n{fence}`"

    def html(self) -> str:
        """A `<pre>` in a card."""
        return element("section", element("pre", html.escape(self.code)))


@dataclasses.dataclass(frozen=True)
class Gallery:
    """Pictures with captions.

    Attributes:
        pictures: (data URL of a picture, caption) pairs; "\\n" breaks the line of a caption.
        large: whether each takes the whole width.
    """

    pictures: Sequence[tuple[str, str]]
    large: bool = False

    def text(self) -> str:
        """The captions."""
        return "\n".join(" ".join(caption.split("\n")) for _, caption in self.pictures)

    def markdown(self) -> str:
        """The captions as a list, without the pictures, which only the page embeds."""
        return "\n".join(f"- {line}" for line in self.text().splitlines())

    def html(self) -> str:
        """`<figure>`s in a card."""
        figures = []
        for source, caption in self.pictures:
            said = html.escape(caption)
            image = element("img", "", {"alt": caption.replace("\n", ", "), "src": source})
            image = image.replace("</img>", "").rstrip()
            label = element("figcaption", said.replace("\n", "<br>"))
            figures.append(element("figure", image + label))
        kind = "gallery large" if self.large else "gallery"
        return element("section", element("div", "".join(figures), {"class": kind}))


Part: TypeAlias = Grid | Lines | Links | Code | Gallery


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of a page under a heading.

    Attributes:
        title: the heading.
        note: a sentence on what is shown.
        parts: tables, sentences, pictures, in order.
        plots: plots below them.
        folded: heading → a part that a page shows on demand, and Markdown below its heading.
    """

    title: str
    note: str = ""
    parts: Sequence[Part] = ()
    plots: Sequence[Plot] = ()
    folded: Mapping[str, Part] = dataclasses.field(default_factory=dict)

    @property
    def anchor(self) -> str:
        """The fragment identifier of the heading."""
        return re.sub(r"\W+", "-", self.title.lower()).strip("-")

    def text(self) -> str:
        """Title and parts as plain text."""
        parts = (part.text() for part in self.parts)
        return "\n\n".join(filter(None, [self.title.upper(), self.note, *parts]))

    def markdown(self, figures: Mapping[str, pathlib.Path]) -> str:
        """The section in Markdown; `figures` is title → file of the plots that were drawn."""
        shown = [f"![{p.title}]({figures[p.title].name})" for p in self.plots if p.title in figures]
        parts = [f"## {self.title}", self.note, *(part.markdown() for part in self.parts), *shown]
        for title, part in self.folded.items():
            parts += [f"### {title}", part.markdown()]
        return "\n\n".join(filter(None, parts))

    def html(self, figures: Mapping[str, pathlib.Path]) -> str:
        """The section as HTML, with its plots embedded."""
        inside = element("h2", html.escape(self.title), {"id": self.anchor})
        inside += element("p", html.escape(self.note), {"class": "sub"}) if self.note else ""
        inside += "".join(part.html() for part in self.parts)
        shown = "".join(figure(p.title, figures[p.title]) for p in self.plots if p.title in figures)
        inside += element("div", shown, {"class": "figures"}) if shown else ""
        for title, part in self.folded.items():
            inside += element("details", element("summary", html.escape(title)) + part.html())
        return element("div", inside, {"class": "part"})
