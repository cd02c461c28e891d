"""XML and JSON parsers that keep line numbers, so that faults can be located.

Numbers and flags may be written as text in both formats.
"""

from __future__ import annotations

import bisect
import dataclasses
import json
import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple
from xml.parsers import expat

from tfkd import checks

_SPACE = re.compile(r"[ \t\n\r]*")
_ID = re.compile(r'"id"\s*:')


@dataclasses.dataclass
class Element:
    """An element of an XML file, with the line on which it begins."""

    tag: str
    line: int
    text: str = ""
    children: list[Element] = dataclasses.field(default_factory=list)

    def find(self, tag: str) -> Element | None:
        """The first child of this name."""
        return next((child for child in self.children if child.tag == tag), None)


def xml(content: bytes) -> Element:
    """The root element of an XML file.

    Raises:
        expat.ExpatError: if it is not XML; the error has `lineno`.
        LookupError, ValueError: for an encoding that expat does not support.

    Example:
        >>> from tfkd.data.detection import parsing
        >>> top = parsing.xml(b"<a>\\n<b>2</b></a>")
        >>> top.find("b")
        Element(tag='b', line=2, text='2', children=[])
    """
    parser = expat.ParserCreate()
    parser.buffer_text = True
    stack = [Element("", 0)]

    def start(tag: str, _: Any) -> None:
        element = Element(tag, parser.CurrentLineNumber)
        stack[-1].children.append(element)
        stack.append(element)

    def text(data: str) -> None:
        stack[-1].text += data

    parser.StartElementHandler = start
    parser.EndElementHandler = lambda _: stack.pop()
    parser.CharacterDataHandler = text
    parser.Parse(content, True)
    return stack[0].children[0]


class Entry(NamedTuple):
    """An element of a JSON list, and the line of its id or else of its beginning."""

    value: Any
    line: int


class _Json:
    """Walks the top level of a JSON object; nested values are left to Python's decoder."""

    def __init__(self, text: str, sections: Sequence[str]):
        self.text, self.sections = text, sections
        self.breaks = [match.start() for match in re.finditer("\n", text)]
        self.decode = json.JSONDecoder().raw_decode

    def skip(self, at: int) -> int:
        """The next position that is not white space."""
        match = _SPACE.match(self.text, at)
        return match.end() if match else at

    def expect(self, characters: str, at: int) -> int:
        """The next position that is not white space; it must hold one of `characters`."""
        at = self.skip(at)
        if self.text[at : at + 1] not in tuple(characters):
            named = " or ".join(map(repr, characters))
            raise json.JSONDecodeError(f"Expecting {named}", self.text, at)
        return at

    def elements(self, at: int) -> tuple[list[Entry], int]:
        """The list that begins at `at`, and the position of its end."""
        entries: list[Entry] = []
        at = self.skip(at + 1)
        if self.text[at : at + 1] == "]":
            return entries, at + 1
        while True:
            value, end = self.decode(self.text, at)
            mark = _ID.search(self.text, at, end)
            place = mark.start() if mark else at
            entries.append(Entry(value, bisect.bisect_left(self.breaks, place) + 1))
            at = self.expect(",]", end)
            if self.text[at] == "]":
                return entries, at + 1
            at = self.skip(at + 1)

    def members(self) -> dict[str, list[Entry] | None]:
        """The sections of the object that spans the text."""
        found: dict[str, list[Entry] | None] = {}
        at = self.expect("{", 0)
        end = self.skip(at + 1)
        if self.text[end : end + 1] == "}":
            at = end
        while self.text[at] != "}":
            key, at = self.decode(self.text, self.expect('"', at + 1))
            at = self.skip(self.expect(":", at) + 1)
            if key in self.sections and self.text[at : at + 1] == "[":
                found[key], at = self.elements(at)
            else:
                _, at = self.decode(self.text, at)
                if key in self.sections:
                    found[key] = None
            at = self.expect(",}", at)
        if self.skip(at + 1) != len(self.text):
            raise json.JSONDecodeError("Extra data", self.text, self.skip(at + 1))
        return found


def json_sections(text: str, sections: Sequence[str]) -> dict[str, list[Entry] | None]:
    """The lists of a JSON object under these keys; None for a value that is not a list.

    Raises:
        json.JSONDecodeError: if it is not a JSON object; the error has `lineno`.
        RecursionError: if values are nested too deeply.

    Example:
        >>> from tfkd.data.detection import parsing
        >>> parsing.json_sections('{"a": 1,\\n"b": [{"c": 3,\\n"id": 4}]}', ["b"])
        {'b': [Entry(value={'c': 3, 'id': 4}, line=3)]}
    """
    return _Json(text, sections).members()


def number(text: Any) -> float | None:
    """A finite number, possibly written as text, or None if it is not one."""
    # float() accepts the underscores of Python literals such as 1_000, which JSON does not.
    if isinstance(text, bool) or (isinstance(text, str) and "_" in text):
        return None
    try:
        value = float(text)
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None


# What annotation tools write for a missing value.
_MISSING = frozenset({"", "nan", "none", "null"})


def length(value: Any) -> int | None:
    """A side in pixels; None if it is missing: empty, or not above 0.

    Raises:
        ValueError: if it is not a number.
    """
    if value is None or str(value).strip().lower() in _MISSING:
        return None
    found = number(value)
    if found is None:
        raise checks.value_error("size", "a number of pixels", value)
    return int(found) if found >= 1 else None


def flag(value: Any) -> bool | None:
    """A boolean: true, false, 0, 1, or these as text; null is False. None: not a boolean."""
    if isinstance(value, str):
        return {"0": False, "false": False, "1": True, "true": True}.get(value.strip().lower())
    if value is None or isinstance(value, (bool, int, float)):
        return bool(value) if value in (None, 0, 1) else None
    return None
