"""Does distillation help? One student alone and distilled, 5 seeds, the same teacher.

    python benchmarks/distill_digits.py --json=distill_digits.json

The models, the data and the training are those of `examples/digits.py`, whose
options all apply (`--data`, `--teacher`, `--student`, `--epochs`, ...). Accuracy
is that of the last epoch. Prints a Markdown table and writes every seed's value.
"""

from __future__ import annotations

import harness
import shared

shared.PARSER = harness.Parser(
    __doc__, teacher="resnet8:8", student="resnet8:4", teacher_epochs=2, epochs=2, seeds=2
)
shared.DEFAULTS["seeds"] = 5
shared.flag("first-seed", 1, "seed of the first student")

import digits  # its flags and its training: parses, and imports tfkd first

# isort: split
import numpy as np
from absl import logging
from shared import FLAGS, Say

from tfkd import report


def measure(dataset, say: Say) -> dict[str, list[digits.Run]]:
    """Trains the teachers once, then each seed's student alone and distilled."""
    runs: dict[str, list[digits.Run]] = {"teacher": digits.train_teachers(dataset)}
    say("teachers: " + ", ".join(f"{run.curve[-1]:.2f} %" for run in runs["teacher"]))
    guides = [run.model for run in runs["teacher"]]
    runs |= {"alone": [], "distilled": []}
    for seed in range(FLAGS.first_seed, FLAGS.first_seed + FLAGS.seeds):
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
    values["gain"] = values["distilled"] - values["alone"]
    shown = {kind: harness.spread(found) for kind, found in values.items()}
    rows = [["teacher", shown["teacher"], f"{large.params:,}", f"{large.macs:,}"]]
    for kind in ("alone", "distilled"):
        rows.append([f"student {kind}", shown[kind], f"{counts.params:,}", f"{counts.macs:,}"])
    rows.append(["gain, seed by seed", shown["gain"], "", ""])
    text = harness.table(["model", "accuracy %", "parameters", "MACs"], rows)
    return (
        f"{text}\n{dataset!r}; {len(values['teacher'])} × teacher, {len(values['alone'])} seeds, "
        "mean ± sample standard deviation, last epoch.\n"
    )


def main() -> None:
    logging.set_verbosity(logging.ERROR)
    dataset = digits.load(FLAGS.data)
    runs = measure(dataset, Say())
    curves = {kind: [run.curve for run in group] for kind, group in runs.items()}
    harness.show(FLAGS, markdown(dataset, runs), data=repr(dataset), curves=curves)


if __name__ == "__main__":
    main()
