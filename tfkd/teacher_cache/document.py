"""cache.json: layout and provenance of a teacher cache, and comparison of two."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tfkd import artifacts, checks, fingerprints
from tfkd.teachers.layout import Layout

FORMAT = "tfkd teacher cache, 1"
NAME = "cache.json"
_EXPECTED = "the folder of a teacher cache, as TeacherCache.build makes it"


@dataclasses.dataclass(frozen=True)
class Document:
    """Content of cache.json.

    Attributes:
        count: number of examples.
        views: number of views of each example.
        shard_size: examples per shard.
        layout: layout of the outputs.
        parts: teacher, data and functions → SHA-256, or None if it is not known.
        settings: settings that the outputs depend on.
    """

    count: int
    views: int
    shard_size: int
    layout: Layout
    parts: Mapping[str, str | None]
    settings: Mapping[str, Any]

    @property
    def identity(self) -> str:
        """The first 12 hexadecimal digits of the teacher's fingerprint."""
        return str(self.parts["teacher"])[:12]

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the content."""
        return fingerprints.digest(self._content())

    def _content(self) -> dict[str, Any]:
        return json.loads(json.dumps({"format": FORMAT, **dataclasses.asdict(self)}))

    def write(self, folder: Path) -> None:
        """Writes the file atomically."""
        content = self._content()
        artifacts.write_json(folder / NAME, {**content, "check": fingerprints.digest(content)})


def read(folder: Path) -> Document:
    """Reads the file that `write` wrote.

    Raises:
        ValueError: if it is missing, damaged, or of another format.
    """
    path = folder / NAME
    fix = "Build the cache again."
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        check = content.pop("check")
    except FileNotFoundError:
        problem = f"There is no {path}. Make one with TeacherCache.build."
        raise checks.value_error("path", _EXPECTED, str(folder), problem) from None
    except (OSError, ValueError, KeyError, AttributeError) as error:
        problem = f"{path} can't be read ({error}). {fix}"
        raise checks.value_error("path", _EXPECTED, str(folder), problem) from error
    if check != fingerprints.digest(content):
        raise checks.value_error("path", _EXPECTED, str(folder), f"{path} was changed. {fix}")
    if content.pop("format") != FORMAT:
        problem = f"{path} is of another format than {FORMAT!r}. {fix}"
        raise checks.value_error("path", _EXPECTED, str(folder), problem)
    return Document(**{**content, "layout": Layout.from_dict(content["layout"])})


def differences(known: Document, wanted: Document) -> list[str]:
    """Names of the differences between two documents, ignoring fingerprints that are None."""
    names = []
    for name in dict.fromkeys([*known.parts, *wanted.parts]):
        values = (known.parts.get(name), wanted.parts.get(name))
        if None not in values and values[0] != values[1]:
            names.append(name)
    names += [n for n in known.settings if known.settings[n] != wanted.settings.get(n)]
    for name in ("count", "views", "layout"):
        if getattr(known, name) != getattr(wanted, name):
            names.append({"count": "number of examples"}.get(name, name))
    return names
