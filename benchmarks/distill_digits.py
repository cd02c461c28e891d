"""Does distillation help? One student alone and distilled, 5 seeds, the same teacher.

    python benchmarks/distill_digits.py --json=distill_digits.json

The models, the data and the training are those of `examples/digits.py`, whose
options all apply (`--data`, `--teacher`, `--student`, `--epochs`, ...). Accuracy
is that of the last epoch. Prints a Markdown table and writes every seed's value.
"""

from __future__ import annotations

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "examples"))

import digits
import numpy as np
from absl import app, flags, logging

from tfkd import artifacts, report

JSON = flags.DEFINE_string("json", "distill_digits.json", "file for the values of every seed")
FIRST_SEED = flags.DEFINE_integer("first-seed", 1, "seed of the first student")
flags.FLAGS.set_default("seeds", 5)


def measure(dataset, say: digits.Say) -> dict[str, list[digits.Run]]:
    """Trains the teachers once, then each seed's student alone and distilled."""
    runs: dict[str, list[digits.Run]] = {"teacher": digits.train_teachers(dataset)}
    say("teachers: " + ", ".join(f"{run.curve[-1]:.2f} %" for run in runs["teacher"]))
    guides = [run.model for run in runs["teacher"]]
    runs |= {"alone": [], "distilled": []}
    for seed in range(FIRST_SEED.value, FIRST_SEED.value + digits.SEEDS.value):
        for kind, teachers in (("alone", None), ("distilled", guides)):
            run = digits.train_student(dataset, seed, teachers)
            runs[kind].append(run)
            say(f"seed {seed} {kind}: {run.curve[-1]:.2f} %")
    return runs


def markdown(dataset, runs: dict[str, list[digits.Run]]) -> str:
    """The table for RESULTS.md."""
    values = {kind: np.array([run.curve[-1] for run in group]) for kind, group in runs.items()}
    counts = report.profile(runs["alone"][0].model)
    large = report.profile(runs["teacher"][0].model)
    small = f"{counts.params:,} | {counts.macs:,}"
    values["gain"] = values["distilled"] - values["alone"]
    shown = {kind: report.seed_stats(found).format(2) for kind, found in values.items()}
    seeds = len(values["alone"])
    return "\n".join(
        [
            "| model | accuracy % | parameters | MACs |",
            "|---|---:|---:|---:|",
            f"| teacher | {shown['teacher']} | {large.params:,} | {large.macs:,} |",
            f"| student alone | {shown['alone']} | {small} |",
            f"| student distilled | {shown['distilled']} | {small} |",
            f"| gain, seed by seed | {shown['gain']} | | |",
            "",
            f"{dataset!r}; {len(values['teacher'])} × teacher, {seeds} seeds, "
            "mean ± sample standard deviation, last epoch.",
        ]
    )


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"Unknown arguments: {argv[1:]}. Options begin with --.")
    logging.set_verbosity(logging.ERROR)
    dataset = digits.load(digits.DATA.value)
    runs = measure(dataset, digits.Say())
    text = markdown(dataset, runs)
    chosen = flags.FLAGS.flags_by_module_dict()[digits.__name__]
    record = {
        "options": {flag.name: flag.value for flag in chosen},
        "first_seed": FIRST_SEED.value,
        "data": repr(dataset),
        "curves": {kind: [run.curve for run in group] for kind, group in runs.items()},
        "machine": report.machine(),
        "table": text,
    }
    artifacts.write_json(JSON.value, record)
    print(text)


if __name__ == "__main__":
    app.run(main)
