"""What is wrong in annotation files: gathered over all of them, then said at once."""

from __future__ import annotations

import collections
import dataclasses
import os
from collections.abc import Iterable
from typing import Any

from tfkd import checks
from tfkd.results import Grid, Result, plain

SHOWN = 20
ON_ERROR = ("raise", "skip")
SHARED = "same image"

# Kind of finding -> what "skip" does about it. Notes are no faults: they raise nothing.
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
NOTES = {
    "no object": "kept, an image without objects",
    "crowd": "left out",
    "other class": "left out",
    "difficult": "left out",
    SHARED: "kept in both parts",
    "orientation": "taken as it is stored, not turned",
}
# Notes that one would not want to miss: number, what the first one is.
_SAID = {
    SHARED: "{} images of the test part are in the training part too, by content; the "
    "first: {}. A score on images that were trained on says nothing about new ones: remove them "
    "from one of the lists.",
    "orientation": "{} images hold a note of the camera to turn them, and it can't be known "
    "whether their boxes are for the picture as it is stored, as they are taken, or for the "
    "turned one; the first: {}. Look at one, and save turned images without the note.",
}


@dataclasses.dataclass(frozen=True)
class AnnotationFinding:
    """One thing that is wrong in an annotation file, or worth a note.

    Attributes:
        kind: "no area", "outside", "unknown class", "missing image", ...
        file: the file, as it was given or from the data set's folder.
        line: line in it, from 1; None where it is about the file as a whole.
        expected: what should stand there.
        received: what stands there.
    """

    kind: str
    file: str
    line: int | None
    expected: str
    received: str

    @property
    def is_note(self) -> bool:
        """Whether it is no fault: an image without objects, an object left out on purpose."""
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
        """A row for each finding, and what was done about it."""
        rows = [(f.file, f.line, f.kind, f.expected, f.received, f.action) for f in self]
        head = ("file", "line", "kind", "expected", "received", "done")
        return [Grid(head, rows, {"line": "d"}, left=(0, 2, 3, 4, 5)) if rows else "no findings"]

    def to_dict(self) -> dict[str, Any]:
        """The findings, fit for JSON."""
        return {"findings": plain(list(self))}


class AnnotationError(ValueError):
    """Annotations that can't be used as they are.

    Attributes:
        findings: list of every `AnnotationFinding`, notes included.
    """

    def __init__(self, message: str, findings: Iterable[AnnotationFinding] = ()):
        super().__init__(message)
        self.findings = list(findings)


class AnnotationLog:
    """Gathers findings; `settle` raises or warns once, at the end."""

    def __init__(self) -> None:
        self.all: list[AnnotationFinding] = []

    def add(
        self, kind: str, file: str | os.PathLike, line: int | None, expected: str, received: str
    ) -> None:
        """Notes one finding."""
        if kind not in ACTIONS and kind not in NOTES:
            raise checks.value_error("kind", "a known kind of finding", kind)
        path = os.fspath(file).replace(os.sep, "/")
        self.all.append(AnnotationFinding(kind, path, line, expected, received))

    @property
    def faults(self) -> list[AnnotationFinding]:
        """Those that are no notes, in order."""
        return [finding for finding in self.ordered() if not finding.is_note]

    def ordered(self) -> list[AnnotationFinding]:
        """By file and line: images are read after all annotations, so this is not the old order."""
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
        actions = {**ACTIONS, **NOTES}
        kinds = collections.Counter(
            f.kind for f in self.all if actions[f.kind] in ("object left out", "left out")
        )
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
        """Raises what was found, or warns with the counts; returns all findings."""
        if self.faults and on_error == "raise":
            raise self.error(source, 'Fix the files, or pass on_error="skip" to do as said above.')
        if self.faults:
            checks.warn(f"{source}: {self.counts()}. See `dataset.findings`.")
        warn_notes(source, self.ordered())
        return AnnotationFindings(self.ordered())


def warn_notes(source: str, findings: Iterable[AnnotationFinding]) -> None:
    """Warns of notes that one would not want to miss."""
    findings = list(findings)
    for kind, text in _SAID.items():
        found = [finding for finding in findings if finding.kind == kind]
        if found:
            shown = text.format(len(found), found[0].received)
            checks.warn(f"{source}: {shown} See `dataset.findings`.")
