"""Prunes every family of `tf_keras.applications`: exactness, prunable filters, run time.

    python benchmarks/prune_applications.py
    python benchmarks/prune_applications.py --networks VGG16 ResNet50

Each network has a process of its own, one after the other (see
`application_nets.py` for what is checked), and leaves a record in `--out`. Then the
table and a plot of the seconds over the number of layers are written, with the exponent of the line
through all networks in log-log coordinates: at most 1 means that time grows no
faster than the number of layers. The exit status is 1 if anything fails.
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import harness
import network_runs
import numpy as np

if __name__ == "__main__":  # before TensorFlow is imported: --help answers at once
    ARGS = network_runs.parse(__file__, __doc__, ["MobileNet"])

import application_nets as nets
import prune_tables

LONGEST = 20.0  # seconds, for the largest network
STEEPEST = 1.0  # exponent of the seconds over the layers
Record = network_runs.Record


def total(record: Record) -> float:
    """Seconds for analysing, planning and shrinking."""
    return sum(record["seconds"].values())


def exponent(records: Sequence[Record]) -> tuple[float, float]:
    """(slope, intercept) of log seconds over log layers, least squares."""
    layers = np.log([record["layers"] for record in records])
    slope, intercept = np.polyfit(layers, np.log([total(record) for record in records]), 1)
    return float(slope), float(intercept)


def shared(before_after: Sequence[int]) -> str:
    """(100, 49) → "49.0 %"."""
    before, after = before_after
    return f"{100 * after / before:.1f} %"


def row(record: Record) -> list[object]:
    """One line of the table."""
    filters, all_filters = record["filters"]
    reasons = [reason for reason in record["frozen"] if reason != "output of the model"]
    seconds = record["seconds"]
    return [
        record["name"],
        record["layers"],
        f"{100 * filters / all_filters:.1f} %",
        shared(record["macs"]),
        shared(record["params"]),
        f"{record['difference']:.1e}",
        " / ".join(f"{value:.2f}" for value in record["variation"]),
        *(f"{seconds[step]:.2f}" for step in ("analyse", "plan", "shrink")),
        f"{total(record):.1f}",
        f"{record['cpu_seconds']:.1f}",
        f"{100 * record['planned']:.1f} %",
        "; ".join([*record["failures"], *(f"stays: {len(reasons)} reasons" for _ in reasons[:1])]),
    ]


HEAD = (
    *("network", "layers", "filters that may go", "MACs left", "parameters left"),
    *("difference / range", "outputs move by, whole / masked", "analyse s", "plan s", "shrink s"),
    *("in all s", "processor s", "planned MACs saved", ""),
)


def summary(records: Sequence[Record]) -> tuple[str, bool]:
    """The table with what it says in all; and whether everything holds."""
    lines = [harness.table(HEAD, map(row, records))]
    worst = max(records, key=lambda record: record["difference"])
    slowest = max(records, key=total)
    lines.append(f"Largest difference: {worst['difference']:.1e} ({worst['name']}).")
    lines.append(f"Longest: {total(slowest):.1f} s ({slowest['name']}).")
    holds = total(slowest) <= LONGEST and not any(record["failures"] for record in records)
    if len({record["layers"] for record in records}) > 1:
        slope = exponent(records)[0]
        holds = holds and slope <= STEEPEST
        lines.append(f"Seconds grow as layers^{slope:.2f}.")
    lines.append(f"{len(records)} networks; {'all holds' if holds else 'NOT all holds'}.")
    return "\n".join(lines) + "\n", holds


def plot(records: Sequence[Record], path: pathlib.Path) -> None:
    """Seconds over layers, with the fitted line and one of exponent 1."""
    from tfkd.report.plots import COLOURS, MARKERS

    _, axes, save = prune_tables.axes_of(path)
    families = list(dict.fromkeys(record["family"] for record in records))
    for i, family in enumerate(families):
        mine = [record for record in records if record["family"] == family]
        axes.plot(
            [record["layers"] for record in mine],
            [total(record) for record in mine],
            linestyle="",
            color=COLOURS[i % len(COLOURS)],
            marker=MARKERS[i // len(COLOURS) % len(MARKERS)],
            label=family,
        )
    slope, intercept = exponent(records)
    ends = np.array([min(r["layers"] for r in records), max(r["layers"] for r in records)])
    axes.plot(ends, np.exp(intercept) * ends**slope, "k-", label=f"layers^{slope:.2f}")
    middle = np.exp(np.log(ends).mean())
    level = np.exp(intercept) * middle**slope
    axes.plot(ends, level * ends / middle, "--", color="#888888", label="layers^1")
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="layers",
        ylabel="seconds: analyse, plan, shrink with its proof",
    )
    axes.grid(True, which="both", color="#dddddd")
    axes.legend(ncols=2, fontsize="small")
    save()


def check(name: str, seed: int) -> Record:
    """Checks one network and takes its times."""
    return nets.check(name, seed, timed=True)


def finish(records: list[Record], out: pathlib.Path) -> tuple[str, bool]:
    """The table; and the plot into the folder."""
    if len({record["layers"] for record in records}) > 1:
        plot(records, out / "seconds.png")
    return summary(records)


if __name__ == "__main__":
    every = [name for names in nets.FAMILIES.values() for name in names]
    network_runs.main(__file__, ARGS, every, check, finish)
