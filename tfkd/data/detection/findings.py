"""Annotation faults and notes: collected over all files, then raised or warned of at once."""

from __future__ import annotations

import collections
import dataclasses
import os
from collections.abc import Iterable
from typing import Any

from tfkd import checks
from tfkd.results import Grid, Result, plain

SHOWN = 20
SHARED = "same image"

TO_SKIP = 'Fix the files, or pass on_error="skip" (--on_error=skip) for the actions in parentheses.'
# Kind of fault -> what on_error="skip" does about it.
ACTIONS = {
    "broken file": "file left out",
    "no annotation": "image left out",
    "missing image": "image left out",
    "leads out": "image left out",
    "undecodable image": "image left out",
    "size": "image left out",
    "listed twice": "second entry left out",
    "in both parts": "image left out of the test part",
    "missing value": "object left out",
    "bad value": "object left out",
    "unknown image": "object left out",
    "unknown class": "object left out",
    "no area": "object left out",
    "outside": "box clipped",
    "off the image": "object left out",
}
# Kind of note -> what was done; notes are not faults and never raise.
NOTES = {
    "no object": "kept, an image without objects",
    "crowd": "left out",
    "other class": "left out",
    "difficult": "left out",
    SHARED: "kept in both parts",
    "orientation": "taken as it is stored, not turned",
}
# Notes that are also warned of; the text is formatted with their number and the first one.
_WARNED = {
    SHARED: "{} images of the test part are in the training part too, by content; the "
    "first: {}. Scores on images that were trained on do not measure generalization: remove "
    "them from one of the lists.",
    "orientation": "{} images have an EXIF orientation, and it is not known whether their boxes "
    "refer to the image as stored, which is assumed, or as displayed; the first: {}. Check one "
    "of them, and save the images rotated and without EXIF orientation.",
}


@dataclasses.dataclass(frozen=True)
class AnnotationFinding:
    """A fault in an annotation file, or a note.

    Attributes:
        kind: "no area", "outside", "unknown class", "missing image", ...
        file: the file, as given or relative to the data set's folder.
        line: line number from 1; None if the finding concerns the whole file.
        expected: the expected content.
        received: the actual content.
    """

    kind: str
    file: str
    line: int | None
    expected: str
    received: str

    @property
    def is_note(self) -> bool:
        """Whether it is not a fault: an image without objects, an object left out on purpose."""
        return self.kind in NOTES

    @property
    def action(self) -> str:
        """What `on_error="skip"` does about it."""
        return NOTES.get(self.kind) or ACTIONS[self.kind]

    def __str__(self) -> str:
        place = self.file if self.line is None else f"{self.file}:{self.line}"
        return f"{place}: expected {self.expected}, received {self.received}"


class AnnotationFindings(Result, tuple):
    """A tuple of `AnnotationFinding`s, which `print` shows as a table."""

    def parts(self) -> list[Grid | str]:
        """A table with a row for each finding and what was done about it."""
        rows = [(f.file, f.line, f.kind, f.expected, f.received, f.action) for f in self]
        head = ("file", "line", "kind", "expected", "received", "done")
        return [Grid(head, rows, {"line": "d"}, left=(0, 2, 3, 4, 5)) if rows else "no findings"]

    def to_dict(self) -> dict[str, Any]:
        """The findings as JSON values."""
        return {"findings": plain(list(self))}


class AnnotationError(ValueError):
    """Annotations with faults.

    Attributes:
        findings: list of every `AnnotationFinding`, notes included.
    """

    def __init__(self, message: str, findings: Iterable[AnnotationFinding] = ()):
        super().__init__(message)
        self.findings = list(findings)


class AnnotationLog:
    """Collects findings; `settle` raises or warns once, at the end."""

    def __init__(self) -> None:
        self.all: list[AnnotationFinding] = []

    def add(
        self, file: str | os.PathLike, kind: str, line: int | None, expected: str, received: str
    ) -> None:
        """Adds a finding."""
        if kind not in ACTIONS and kind not in NOTES:
            raise checks.value_error("kind", "a known kind of finding", kind)
        path = os.fspath(file).replace(os.sep, "/")
        self.all.append(AnnotationFinding(kind, path, line, expected, received))

    @property
    def faults(self) -> list[AnnotationFinding]:
        """The findings that are not notes, in order."""
        return [finding for finding in self.ordered() if not finding.is_note]

    def ordered(self) -> list[AnnotationFinding]:
        """All findings by file and line; they are added in another order, annotations first."""
        return sorted(self.all, key=lambda finding: (finding.file, finding.line or 0))

    def counts(self) -> str:
        """How many of each kind, and what "skip" does about them."""
        kinds = collections.Counter(finding.kind for finding in self.faults)
        total = sum(kinds.values())
        parts = [f"{n} × {kind} ({ACTIONS[kind]})" for kind, n in kinds.most_common()]
        noun = "fault" if total == 1 else "faults"
        return f"{total} {noun} in the annotations: {', '.join(parts)}"

    def left_out(self) -> str:
        """How many objects of each kind were left out, notes included; empty for none."""
        gone = ("object left out", "left out")
        kinds = collections.Counter(f.kind for f in self.all if f.action in gone)
        return ", ".join(f"{n} × {kind}" for kind, n in kinds.most_common())

    def error(self, source: str, fix: str) -> AnnotationError:
        """All faults as one error that lists the first of them."""
        faults = self.faults
        lines = [f"  {finding}" for finding in faults[:SHOWN]]
        if len(faults) > SHOWN:
            lines.append(f"  ... and {len(faults) - SHOWN} more, all in the error's `findings`")
        head = [f"{source}: {self.counts()}."] if faults else [f"{source}:"]
        return AnnotationError("\n".join([*head, *lines, fix]), self.ordered())

    def settle(self, source: str, on_error: str) -> AnnotationFindings:
        """Raises the faults or warns with their counts; returns all findings."""
        if self.faults and on_error == "raise":
            raise self.error(source, TO_SKIP)
        if self.faults:
            first = self.faults[0]
            checks.warn(f"{source}: {self.counts()}. First: {first}. `dataset.findings` has all.")
        warn_notes(source, self.ordered())
        return AnnotationFindings(self.ordered())


def warn_notes(source: str, findings: Iterable[AnnotationFinding]) -> None:
    """Warns of images in both parts and of ambiguous orientations."""
    findings = list(findings)
    for kind, text in _WARNED.items():
        found = [finding for finding in findings if finding.kind == kind]
        if found:
            shown = text.format(len(found), found[0].received)
            checks.warn(f"{source}: {shown} See `dataset.findings`.")
