"""The table of `real_models.py`."""

from __future__ import annotations

from typing import Any

from tfkd.results import size_text

HEAD = (
    "| model | step | | mean error | max error | agreement | kept | size | ms | |\n"
    "|---|---|---|---:|---:|---:|---:|---:|---:|---|"
)


def text(records: dict[str, dict[str, Any]]) -> str:
    """A line for each step of each model, and how many went well."""
    lines = [HEAD]
    lines += [
        row(name, step, one) for name, steps in records.items() for step, one in steps.items()
    ]
    found = [one["outcome"] for steps in records.values() for one in steps.values()]
    counts = ", ".join(f"{found.count(kind)} {kind}" for kind in ("ok", "refused", "broke"))
    return "\n".join([*lines, "", f"{len(found)} steps: {counts}."]) + "\n"


def row(name: str, step: str, record: dict[str, Any]) -> str:
    """One line."""
    cells = [
        name,
        step,
        record["outcome"],
        share(record.get("mean_error")),
        share(record.get("max_error")),
        share(record.get("agreement"), 1),
        share(record.get("kept"), 1),
        size_text(record["bytes"]) if "bytes" in record else "",
        f"{record['ms']:.3g}" if "ms" in record else "",
        record.get("text", "").replace("|", "\\|"),
    ]
    return "| " + " | ".join(cells) + " |"


def share(value: float | None, digits: int = 2) -> str:
    """A part as per cent; what is too small to show so as a power of ten."""
    if value is None:
        return ""
    return f"{value:.0e}" if 0 < value < 1e-4 else f"{100 * value:.{digits}f} %"
