"""Sections of a run's page on classes: precision and recall, confusion, calibration, changes."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from tfkd.report import class_plots
from tfkd.report.class_details import MOST_SHOWN, ClassDetails
from tfkd.results import Gallery, Grid, Lines, Plot, Section

_MOST_ROWS = 40  # classes that a table shows at once
_MOST_IN_MATRIX = 60  # classes of a legible confusion matrix


def _pair(report: Any) -> tuple[ClassDetails | None, ClassDetails | None]:
    """Details of the original and of the final model."""
    before = getattr(report.original_row, "details", None)
    after = getattr(report.final_row, "details", None)
    return (None if report.original_row.model == report.final else before), after


def classes(report: Any) -> Section | None:
    """Precision and recall before and after, and the confusion matrices."""
    before, after = _pair(report)
    if after is None:
        return None
    pairs = [(name, one) for name, one in (("before", before), ("after", after)) if one]
    rows = _class_rows([one for _, one in pairs])
    head = ["class"]
    for score in ("precision %", "recall %"):
        head += [f"{score} {name}" for name, _ in pairs]
    head += ["change of F1", "examples"] if before else ["examples"]
    formats = dict.fromkeys(head[1:-1], ".1f") | {"change of F1": "+.1f"}
    grid, folded, note = Grid(head, rows, formats), {}, ""
    if len(rows) > _MOST_ROWS:
        order = sorted(rows, key=lambda row: np.nan_to_num(row[-2], nan=np.inf))[:_MOST_ROWS]
        note = f"The {_MOST_ROWS} classes of {len(rows)} that lost most."
        grid, folded = Grid(head, order, formats), {"All classes": Grid(head, rows, formats)}
    parts: list[Any] = [grid]
    shown = len(rows) <= _MOST_IN_MATRIX and not after.multi_label
    plots = [
        Plot(f"confusion_{name}", f"Confusion {name}", functools.partial(
            class_plots.confusion, one, _title(report, name)))
        for name, one in pairs if shown
    ]  # fmt: skip
    confused = _confused(before, after)
    if confused and confused.rows:
        folded["Most confused classes"] = confused
    title = "Labels" if after.multi_label else "Classes: precision, recall, confusion"
    return Section(title, note, parts, plots, folded)


def _title(report: Any, name: str) -> str:
    model = report.original_row.model if name == "before" else report.final
    return f"{name}: {model}"


def _class_rows(details: list[ClassDetails]) -> list[tuple[Any, ...]]:
    """Name, precisions, recalls, change of F1 if there are two models, and examples."""
    last = details[-1]
    columns: list[Any] = [last.class_names]
    columns += [one.precision for one in details] + [one.recall for one in details]
    if len(details) == 2:
        first, second = (np.array(_f1(one)) for one in details)
        columns.append((second - first).tolist())
    return [*zip(*columns, last.truth, strict=True)]


def _f1(details: ClassDetails) -> list[float]:
    both = zip(details.right, details.truth, details.predicted, strict=True)
    return [200 * hits / (t + p) if t else float("nan") for hits, t, p in both]


def _confused(before: ClassDetails | None, after: ClassDetails) -> Grid | None:
    if not after.confused:
        return None
    then = {} if before is None else {(t, p): count for t, p, count in before.confused}
    names = after.class_names
    rows = [(names[t], names[p], then.get((t, p), 0), c) for t, p, c in after.confused[:20]]
    head = ("true class", "predicted", "before", "after")
    if before is None:
        return Grid((*head[:2], "examples"), [(t, p, c) for t, p, _, c in rows], left=2)
    return Grid(head, rows, left=2)


def calibration(report: Any) -> Section | None:
    """Expected calibration error and reliability diagram, before and after."""
    pairs = zip((report.original_row.model, report.final), _pair(report), strict=True)
    found = {name: one.calibration for name, one in pairs if one and one.calibration}
    if not found:
        return None
    rows = [(name, one.ece, sum(one.counts)) for name, one in found.items()]
    grid = Grid(("model", "ECE", "predictions"), rows, {"ECE": ".4f"})
    note = (
        "Expected calibration error: mean difference of confidence and accuracy over 15 bins "
        "(Guo et al. 2017); 0 is best. Above the diagonal a model is too modest, below too sure; "
        "bins of less than 10 predictions are not drawn."
    )
    draw = functools.partial(class_plots.reliability, found)
    plots = [Plot("calibration", "Accuracy against confidence", draw)]
    return Section("Calibration of probabilities", note, [grid], plots)


def changes(report: Any) -> Section | None:
    """Examples that changed class, with their pictures."""
    _, after = _pair(report)
    if after is None or after.agreement is None:
        return None
    note = (
        f"{report.final} agrees with {after.compared_with} on {after.agreement:.2f} % of the "
        f"examples. {after.changed:,} changed: {after.lost:,} lost (only the original was right), "
        f"{after.gained:,} gained (only the new model is right)."
    )
    parts: list[Any] = []
    pictured = [one for one in after.changes if str(one.example) in report.pictures]
    if pictured:
        shown = [(report.pictures[str(one.example)], _caption(one)) for one in pictured]
        parts.append(Gallery(shown[:MOST_SHOWN]))
    head = ("example", "true class", "before", "sure", "after", "sure now", "outcome")
    rows = [
        (one.example, one.truth, one.before, one.confidence_before, one.after,
         one.confidence_after, one.kind)
        for one in after.changes
    ]  # fmt: skip
    table = Grid(head, rows, {"sure": ".0%", "sure now": ".0%"}, left=(1, 2, 4, 6))
    if not rows:
        parts.append(Lines(["No example changed." if not after.changed else note]))
    folded = {f"List of {len(rows):,} examples": table} if rows else {}
    return Section("Examples that changed class", note, parts, folded=folded)


def _caption(one: Any) -> str:
    before = f"before: {one.before} ({one.confidence_before:.0%})"
    after = f"after: {one.after} ({one.confidence_after:.0%})"
    return f"{one.example}: {one.truth}\n{before}\n{after}\n{one.kind}"
