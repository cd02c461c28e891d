"""The table and the plot of `curriculum_cifar.py`, from the records of its runs."""

from __future__ import annotations

import pathlib
from typing import Any

from harness import spread
from harness import table as markdown

import tfkd
from tfkd import artifacts

Record = dict[str, Any]


def write(records: list[Record], out: pathlib.Path) -> str:
    """Writes the table and the plots into `out`; returns the table."""
    if not records:
        return f"no run has a record in {out}"
    by_noise: dict[float, list[Record]] = {}
    for record in records:
        by_noise.setdefault(record["noise"], []).append(record)
    lines = []
    for noise, group in by_noise.items():
        lines += [headline(noise, group), "", table(group)]
        plot(group, out / f"curriculum_noise{100 * noise:g}.png")
    text = "\n".join(lines)
    artifacts.write_text(out / "table.md", text)
    return text


def headline(noise: float, records: list[Record]) -> str:
    s = records[0]["settings"]
    halves = {(r["seed"], r["clean_in_easiest_half"]) for r in records if not is_plain(r)}
    shares = spread([share for _, share in sorted(halves)])
    return (
        f"**{100 * noise:g} % wrong labels**: ResNet-{s['depth']} {tuple(s['widths'])}, "
        f"{s['images']:,} images, batch {s['batch']}, {s['epochs']} epochs. Right labels in the "
        f"easiest half by the teacher's loss: {shares} %."
    )


def is_plain(record: Record) -> bool:
    return record["end"] is None and not record["lam"]


def arms(records: list[Record]) -> dict[str, list[Record]]:
    found: dict[str, list[Record]] = {}
    for record in sorted(records, key=lambda r: r["seed"]):
        found.setdefault(record["arm"], []).append(record)
    return found


def table(records: list[Record]) -> str:
    """Accuracy of each arm, its distance from plain seed by seed, and steps to a goal."""
    groups = arms(records)
    plain = {r["seed"]: r for r in groups.get("plain", [])}
    head = ["arm", "share of the data", "λ", "accuracy, mean ± sd (%)", "minus plain, by seed"]
    head += ["steps to 95 % of plain's", "seeds"]
    rows = []
    for name, group in groups.items():
        first, known = group[0], [r for r in group if r["seed"] in plain]
        gaps = [r["accuracy"] - plain[r["seed"]]["accuracy"] for r in known]
        goals = [steps_to(r, 0.95 * plain[r["seed"]]["curve"][-1]) for r in known]
        end, start = first["end"], first.get("start") or first["settings"]["start"]
        cells = [
            name,
            "all" if end is None else f"{100 * start:g} → {100 * end:g} %",
            f"{first['lam']:g}",
            spread([r["accuracy"] for r in group]),
            spread(gaps) if name != "plain" else "",
            ", ".join("never" if goal is None else str(goal) for goal in goals),
            ", ".join(f"{r['accuracy']:.2f}" for r in group),
        ]
        rows.append(cells)
    return markdown(head, rows)


def steps_to(record: Record, goal: float) -> int | None:
    """Steps made at the end of the first epoch with an accuracy of at least `goal`."""
    for epoch, accuracy in enumerate(record["curve"], 1):
        if accuracy >= goal:
            return epoch * record["steps_per_epoch"]
    return None


def plot(records: list[Record], path: pathlib.Path) -> None:
    """Accuracy after each epoch on the test images that were watched.

    Without the anti-curriculum, which stays below chance and would press the others flat.
    """
    shown = {name: group for name, group in arms(records).items() if name != "anti-curriculum"}
    curves = {name: [r["curve"] for r in group] for name, group in shown.items()}
    tfkd.report.plots.training_curves(curves, path, "accuracy on 2,000 test images (%)")
