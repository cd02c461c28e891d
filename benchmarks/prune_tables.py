"""The tables and plots of `prune_cifar.py`, from the JSON files that it has written."""

from __future__ import annotations

import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from harness import spread, table

import tfkd
from tfkd import artifacts

Record = dict[str, Any]
# What the decay gives, what the teacher gives, and what the pruning takes.
TAUGHT = ("fd-skd", "hard-skd", "soft-skd", "none-skd")
PAIRS = [("fd-skd", "hard-skd"), ("fd-skd", "soft-skd"), ("fd", "hard"), ("fd", "soft")]
PAIRS += [(method, method.removesuffix("-skd")) for method in TAUGHT]
PAIRS += [(method, "none-skd") for method in TAUGHT[:3]]
PAIRS += [(method, "none") for method in (*TAUGHT[:3], "fd", "hard", "soft")]


def write(
    studies: Mapping[tuple[str, str], Sequence[Any]],
    found: Mapping[Any, Record | None],
    out: pathlib.Path,
) -> str:
    """Writes the table of each study and base, and its plot, into `out`; returns the tables.

    Args:
        studies: (study, base) → the settings of its runs.
        found: setting → its record, None if there is none yet.
        out: a folder.
    """
    texts = []
    for (study, base), settings in studies.items():
        records = [record for setting in settings if (record := found.get(setting))]
        if not records:
            continue
        lines = [*headline(study, records, len(settings)), TABLES[study](study, records)]
        texts.append("\n".join(lines))
        artifacts.write_text(out / f"{base}-{study}.md", texts[-1])
        if study in PLOTS:
            PLOTS[study](records, out / f"{base}-{study}.png")
    return "\n".join(texts)


def headline(study: str, records: list[Record], wanted: int) -> list[str]:
    """What all runs of a table have in common."""
    first, costs = records[0]["setting"], {tuple(r["macs"]) for r in records}
    whole = max(pair[0] for pair in costs)
    # Records of before it was kept do not say on what their base was trained.
    images, epochs = records[0].get("base_trained") or (None, None)
    trained = f" after {epochs} epochs of {images:,} images" if images else ""
    text = (
        f"**{study}**, CIFAR-10, base {first['base']} ({records[0]['base_accuracy']:.2f} %"
        f"{trained}; {whole:,} MACs): {first['images']:,} images, {first['epochs']} epochs, "
        f"peak {first['peak']}"
    )
    if study == "main":
        text += f"; decay in {first['share']:.0%} of them, every {first['interval']} epochs"
        text += f"; λ = {first['lam']}, T = {first['temperature']}"
    seeds = ", ".join(map(str, sorted({r["setting"]["seed"] for r in records})))
    return [f"{text}; seeds {seeds}; {len(records)} of {wanted} runs.", ""]


def groups(records: list[Record], key: str) -> dict[Any, list[Record]]:
    """The records by one field of their setting, in the order in which they come."""
    found: dict[Any, list[Record]] = {}
    for record in records:
        found.setdefault(record["setting"][key], []).append(record)
    return found


def by_value(key: str, records: list[Record]) -> str:
    """One row for each value of a field: accuracy after the last epoch, and at the cut."""
    head = [key, "accuracy, mean ± sd (%)", "at the cut", "runs that passed their base"]
    head += ["MACs", "parameters", "minutes", "seeds"]
    rows = []
    for value, group in groups(records, key).items():
        cut = [r["accuracy_at_cut"] for r in group if r["accuracy_at_cut"] is not None]
        (macs, small), (params, few) = group[0]["macs"], group[0]["params"]
        cells = [
            value,
            spread([r["accuracy"] for r in group]),
            spread(cut),
            f"{sum(r['passed_its_base'] for r in group)} of {len(group)}",
            f"{100 * small / macs:.1f} %",
            f"{100 * few / params:.1f} %",
            f"{statistics.mean(r['minutes'] for r in group):.1f}",
            ", ".join(f"{r['accuracy']:.2f}" for r in group),
        ]
        rows.append(cells)
    return table(head, rows)


def main_table(study: str, records: list[Record]) -> str:
    """The methods, and the differences between pairs of them, seed by seed."""
    methods = {
        method: {r["setting"]["seed"]: r["accuracy"] for r in group}
        for method, group in groups(records, "method").items()
    }
    rows = []
    for one, other in PAIRS:
        first, second = methods.get(one, {}), methods.get(other, {})
        gaps = [first[seed] - second[seed] for seed in first if seed in second]
        if gaps:
            rows.append([f"{one} minus {other}", spread(gaps)])
    head = ["seed by seed", "points"]
    return by_value("method", records) + ("\n" + table(head, rows) if rows else "")


def smoothness_table(study: str, records: list[Record]) -> str:
    """Ways to decay: how far accuracy falls meanwhile, and what comes of it."""
    head = ["way", "share of the epochs", "lowest in these epochs", "at the cut", "at the end"]
    rows = []
    for record in records:
        s = record["setting"]
        often = f"every {s['interval']:g} epochs" if s["interval"] > 1e-3 else "each step"
        way = [s["method"]]
        way += [] if s["method"] == "hard-skd" else [often]
        way += [s["reading"], s["anneal"]] if s["method"] == "fd-skd" else []
        part = record["curve"][: min(max(round(s["share"] * s["epochs"]), 1), s["epochs"] - 1)]
        lowest = "–" if s["method"] == "hard-skd" else f"{min(part):.2f}"
        share = "–" if s["method"] == "hard-skd" else f"{s['share']:.0%}"
        ends = [f"{record[key]:.2f}" for key in ("accuracy_at_cut", "accuracy")]
        rows.append([", ".join(way), share, lowest, *ends])
    return table(head, rows)


def ablation_table(study: str, records: list[Record]) -> str:
    return by_value(study, records)


def grid(
    records: list[Record], row: str, column: str, corner: str, more: Sequence[Sequence[Any]] = ()
) -> str:
    """Accuracy for each pair of values of two fields; and more rows."""
    columns = sorted({r["setting"][column] for r in records})
    rows = []
    for value, group in groups(records, row).items():
        cells = groups(group, column)
        rows.append([value, *(spread([r["accuracy"] for r in cells.get(c, [])]) for c in columns)])
    return table([corner, *(f"{column} {c:g}" for c in columns)], [*rows, *more])


def without(records: list[Record], method: str) -> str:
    """A line about the runs of a method that a grid is compared with."""
    values = [r["accuracy"] for r in records if r["setting"]["method"] == method]
    return f"\n{method}: {spread(values)} %.\n" if values else ""


def lambda_table(study: str, records: list[Record]) -> str:
    taught = [r for r in records if r["setting"]["method"] == "fd-skd"]
    return grid(taught, "lam", "temperature", "λ") + without(records, "fd")


def criteria_table(study: str, records: list[Record]) -> str:
    pruned = [r for r in records if r["setting"]["filter_rate"] is not None]
    cost = {r["setting"]["filter_rate"]: r["macs"][1] / r["macs"][0] for r in pruned}
    left = ["MACs left", *(f"{100 * value:.1f} %" for _, value in sorted(cost.items()))]
    return grid(pruned, "criterion", "filter_rate", "criterion", [left]) + without(records, "none")


def axes_of(path: pathlib.Path):
    """A figure that draws to files alone, its axes, and a function that writes it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)

    def save() -> None:
        with artifacts.atomic_path(path) as temporary:
            figure.savefig(temporary, format="png")

    return figure, figure.subplots(), save


def plot_methods(records: list[Record], path: pathlib.Path) -> None:
    """Accuracy on the watched test images after each epoch."""
    curves = {m: [r["curve"] for r in group] for m, group in groups(records, "method").items()}
    tfkd.report.plots.training_curves(curves, path, "accuracy (%)")


def plot_criteria(records: list[Record], path: pathlib.Path) -> None:
    """Accuracy against the share of filters that went."""
    plots = tfkd.report.plots
    _, axes, save = axes_of(path)
    pruned = [r for r in records if r["setting"]["filter_rate"] is not None]
    for i, (criterion, group) in enumerate(groups(pruned, "criterion").items()):
        rates = sorted(groups(group, "filter_rate").items())
        means = [statistics.mean(r["accuracy"] for r in runs) for _, runs in rates]
        axes.plot(
            [rate for rate, _ in rates], means, label=criterion, lw=2,
            color=plots.COLOURS[i % len(plots.COLOURS)],
            marker=plots.MARKERS[i % len(plots.MARKERS)],
        )  # fmt: skip
    whole = [r["accuracy"] for r in records if r["setting"]["method"] == "none"]
    if whole:
        axes.axhline(statistics.mean(whole), color="#999999", ls="--", label="not pruned")
    axes.set(xlabel="share of the filters removed", ylabel="accuracy (%)")
    axes.legend(frameon=False)
    axes.grid(color="#dddddd")
    save()


def plot_lambda(records: list[Record], path: pathlib.Path) -> None:
    """Accuracy as a map over λ and temperature."""
    figure, axes, save = axes_of(path)
    taught = [r for r in records if r["setting"]["method"] == "fd-skd"]
    rows, columns = (sorted(groups(taught, key)) for key in ("lam", "temperature"))
    values = [[float("nan")] * len(columns) for _ in rows]
    for lam, group in groups(taught, "lam").items():
        for temperature, runs in groups(group, "temperature").items():
            mean = statistics.mean(r["accuracy"] for r in runs)
            values[rows.index(lam)][columns.index(temperature)] = mean
    image = axes.imshow(values, origin="lower", cmap="viridis", aspect="auto")
    for i, row in enumerate(values):
        for j, value in enumerate(row):
            box = {"facecolor": "white", "edgecolor": "none", "pad": 2}
            axes.text(j, i, f"{value:.2f}", ha="center", va="center", bbox=box)
    axes.set_xticks(range(len(columns)), [f"{c:g}" for c in columns])
    axes.set_yticks(range(len(rows)), [f"{r:g}" for r in rows])
    axes.set(
        xlabel="temperature", ylabel="λ", title=f"accuracy (%), {taught[0]['setting']['base']}"
    )
    figure.colorbar(image)
    save()


TABLES = {
    "main": main_table,
    "lambda": lambda_table,
    "criteria": criteria_table,
    "smoothness": smoothness_table,
    **{name: ablation_table for name in ("interval", "share", "anneal", "reading")},
}
PLOTS = {"main": plot_methods, "lambda": plot_lambda, "criteria": plot_criteria}
