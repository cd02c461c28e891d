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


def measure(dataset, say: digits.Say) -> tuple[digits.Run, dict[str, list[digits.Run]]]:
    """Trains the teacher once, then each seed's student alone and distilled."""
    teacher = digits.train_teacher(digits.TEACHER.value, dataset, digits.TEACHER_EPOCHS.value)
    say(f"teacher: {teacher.curve[-1]:.2f} %")
    runs: dict[str, list[digits.Run]] = {"alone": [], "distilled": []}
    for seed in range(FIRST_SEED.value, FIRST_SEED.value + digits.SEEDS.value):
        for kind, guide in (("alone", None), ("distilled", teacher.model)):
            student, epochs = digits.STUDENT.value, digits.EPOCHS.value
            run = digits.train_student(student, dataset, epochs, seed, guide)
            runs[kind].append(run)
            say(f"seed {seed} {kind}: {run.curve[-1]:.2f} %")
    return teacher, runs


def markdown(dataset, teacher: digits.Run, runs: dict[str, list[digits.Run]]) -> str:
    """The table for RESULTS.md."""
    values = {kind: np.array([run.curve[-1] for run in group]) for kind, group in runs.items()}
    counts = report.profile(runs["alone"][0].model)
    large = report.profile(teacher.model)
    small = f"{counts.params:,} | {counts.macs:,}"
    alone, distilled, gain = (
        report.seed_stats(v).format(2)
        for v in (values["alone"], values["distilled"], values["distilled"] - values["alone"])
    )
    seeds = len(values["alone"])
    return "\n".join(
        [
            "| model | accuracy % | parameters | MACs |",
            "|---|---:|---:|---:|",
            f"| teacher | {teacher.curve[-1]:.2f} | {large.params:,} | {large.macs:,} |",
            f"| student alone | {alone} | {small} |",
            f"| student distilled | {distilled} | {small} |",
            f"| gain, seed by seed | {gain} | | |",
            "",
            f"{dataset!r}; {seeds} seeds, mean ± sample standard deviation, last epoch.",
        ]
    )


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"Unknown arguments: {argv[1:]}. Options begin with --.")
    logging.set_verbosity(logging.ERROR)
    dataset = digits.load(digits.DATA.value)
    teacher, runs = measure(dataset, digits.Say())
    text = markdown(dataset, teacher, runs)
    chosen = flags.FLAGS.flags_by_module_dict()[digits.__name__]
    record = {
        "options": {flag.name: flag.value for flag in chosen},
        "first_seed": FIRST_SEED.value,
        "data": repr(dataset),
        "teacher": teacher.curve,
        "students": {kind: [run.curve for run in group] for kind, group in runs.items()},
        "machine": report.machine(),
        "table": text,
    }
    artifacts.write_json(JSON.value, record)
    print(text)


if __name__ == "__main__":
    app.run(main)
