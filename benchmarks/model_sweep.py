"""Small models of other people's habits, each through everything that tfkd does.

    python benchmarks/model_sweep.py                          # all of them
    python benchmarks/model_sweep.py --smallest               # five models, under a minute
    python benchmarks/model_sweep.py --only 'lookup,keras3_*' --cells distil,prune
    python benchmarks/model_sweep.py --table --json=sweep.json

`sweep_models/` holds the models and `sweep_cells.py` what is done with each: a cell of the
table for each pair. A cell is

    equal    what came out is what Keras computes, compared here and not by tfkd
    refused  a ValueError, TypeError or ImportError that tfkd raised, shorter than a screen
    BARE     another error: of NumPy, Keras or TensorFlow, or longer than a screen, or one
             that passes on a compiler's words
    WRONG    another result, without a word
    CRASH    the process ended, or took longer than `--seconds`
    none     Keras itself can't do what the cell begins with, such as to save the model

The cells run in a process beside this one, so that a crash is a cell. Each model has a record
in `--out`; `--retry` makes those anew that have a cell which is neither equal nor refused.
The exit status is 1 if any such is left. The table of all models is in `--out`, too.
"""

from __future__ import annotations

import argparse
import fnmatch
import functools
import json
import os
import pathlib
import re
import select
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from typing import Any

import harness

FOLDER = pathlib.Path(__file__).resolve().parent
ROOT = FOLDER.parent
SMALLEST = ("linear", "residual", "gru", "dict_outputs", "string_lookup")
CELLS = (
    *("distil", "prune", "freeze", "quantize", "keras", "saved_model", "onnx", "onnx int8"),
    *("tflite", "tflite int8", "tflite trained int8"),
)
GOOD = ("equal", "refused", "none")
LONGEST_MESSAGE = 1500  # characters: a screen
# Words of compilers and kernels, which say nothing to who built the model.
NATIVE = ("loc(callsite", "{{node", "untracked' resource", "failed to prepare")
MODELS_A_PROCESS = 12  # TensorFlow does not give back all of its memory
Record = dict[str, Any]


def options(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = harness.Parser(__doc__, "saved_models/model_sweep", only=",".join(SMALLEST))
    parser.add_argument(
        "--only", default="*", help="names or patterns of models, or families, by commas"
    )
    parser.add_argument("--cells", default=",".join(CELLS), help="columns, by commas")
    parser.add_argument("--seconds", type=float, default=240.0, help="longest time of a cell")
    parser.add_argument("--retry", action="store_true", help="run again what is not good")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


# In the process beside.


def worker() -> None:
    """Reads tasks, a line of JSON each, and answers with their records."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what anything prints does not get among the answers
    import sweep_cells

    import tfkd  # noqa: F401  (before TensorFlow)

    for line in sys.stdin:
        task = json.loads(line)
        record = run(sweep_cells, task["model"], task["cell"])
        print(json.dumps(record), file=answers, flush=True)


def run(cells: Any, name: str, cell: str) -> Record:
    """The record of one cell."""
    entry, started = cells.MODELS[name], time.monotonic()
    record = {"model": name, "family": entry.family, "cell": cell}
    with tempfile.TemporaryDirectory() as folder:
        try:
            note = cells.CELLS[cell](entry, pathlib.Path(folder))
            record |= {"result": "equal", "text": note}
        except cells.Wrong as wrong:
            record |= {"result": "WRONG", "text": str(wrong)}
        except cells.NotApplicable as why:
            record |= {"result": "none", "text": str(why)}
        except Exception as error:
            record |= judged(error)
    return {**record, "seconds": round(time.monotonic() - started, 1)}


def judged(error: Exception) -> Record:
    """An error as a refusal, if tfkd raised it and it can be read, or as a bare one."""
    text, frames = str(error), traceback.extract_tb(error.__traceback__)
    files = [frame.filename for frame in frames]
    if text.startswith("in user code:"):  # raised while a graph was traced
        files += re.findall(r'File "([^"]+)"', text)
    last = pathlib.Path(files[-1])
    of_keras = text.startswith("Exception encountered when calling layer")
    ours = (ROOT / "tfkd") in last.parents and not of_keras
    readable = isinstance(error, (ValueError, TypeError, ImportError)) and text.strip()
    readable = readable and not any(words in text for words in NATIVE)
    refused = ours and readable and len(text) <= LONGEST_MESSAGE
    where = [f"{f.filename}:{f.lineno}" for f in frames if str(ROOT / "tfkd") in f.filename]
    return {
        "result": "refused" if refused else "BARE",
        "type": type(error).__name__,
        "text": text if refused else text[:LONGEST_MESSAGE],
        "length": len(text),
        "where": where[-1].removeprefix(f"{ROOT}/") if where else "",
        "raised": f"{last.name}",
    }


# In this process.


class Worker:
    """The process beside, started when it is needed, and again after a crash."""

    def __init__(self, seconds: float, log: pathlib.Path):
        self.seconds, self.log = seconds, log
        self.process: subprocess.Popen | None = None
        self.served: set[str] = set()

    def ask(self, model: str, cell: str) -> Record:
        """The record of a cell."""
        if self.process is not None and len(self.served | {model}) > MODELS_A_PROCESS:
            self.close()
        process = self.process = self.process or self._started()
        self.served.add(model)
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps({"model": model, "cell": cell}).encode() + b"\n")
        process.stdin.flush()
        ready, _, _ = select.select([process.stdout], [], [], self.seconds)
        line = process.stdout.readline() if ready else b""
        if line:
            return dict(json.loads(line))
        self.close()
        how = f"ended with {process.returncode}" if ready else f"took over {self.seconds:.0f} s"
        return {"model": model, "cell": cell, "family": "", "result": "CRASH", "text": how}

    def _started(self) -> subprocess.Popen:
        self.served = set()
        paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
        settings = {"KERAS_BACKEND": "tensorflow", "CUDA_VISIBLE_DEVICES": "-1"}
        return subprocess.Popen(
            [sys.executable, __file__, "--worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log.open("ab"),
            env={"TF_CPP_MIN_LOG_LEVEL": "3", **os.environ, **settings, "PYTHONPATH": paths},
        )

    def close(self) -> None:
        """Ends the process."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


def names_of_models() -> dict[str, str]:
    """Name → family of all models, read from their files: nothing is imported here."""
    files = ("sequences", "images", "tables", "forms")
    text = "".join((FOLDER / "sweep_models" / f"{file}.py").read_text() for file in files)
    found = re.findall(r'^@model\("([\w ]+)".*?\)\ndef (\w+)\(', text, flags=re.M)
    return {name: family for family, name in found}


def chosen(given: argparse.Namespace) -> tuple[list[str], list[str]]:
    """Models and cells of what is asked for, in the order in which they run."""
    every = names_of_models()
    patterns, cells = given.only.split(","), given.cells.split(",")
    families = set(every.values())
    unknown = [p for p in patterns if p not in families and not fnmatch.filter(every, p)]
    unknown += [cell for cell in cells if cell not in CELLS]
    if unknown:
        sys.exit(f"No model or cell is called {', '.join(unknown)}. Models: {', '.join(every)}.")
    models = [
        name
        for name, family in every.items()
        if family in patterns or any(fnmatch.fnmatch(name, p) for p in patterns)
    ]
    return models, [cell for cell in CELLS if cell in cells]


def sweep(process: Worker, model: str, cells: Sequence[str]) -> Record:
    """The record of a model."""
    found = []
    for cell in cells:
        found.append(record := process.ask(model, cell))
        first = (record["text"].splitlines() or [""])[0][:100]
        print(f"{model}, {cell}: {record['result']} {first}", flush=True)
    return {"cells": found}


def is_bad(record: Record) -> bool:
    return any(one["result"] not in GOOD for one in record["cells"])


def table(records: Sequence[Record]) -> str:
    """A line for each model, a column for each cell."""
    models = list(dict.fromkeys(record["model"] for record in records))
    found = {(record["model"], record["cell"]): record["result"] for record in records}
    cells = [cell for cell in CELLS if any(record["cell"] == cell for record in records)]
    rows = [[model, *(found.get((model, cell), "") for cell in cells)] for model in models]
    return harness.table(["model", *cells], rows, left=len(cells) + 1)


def counts(records: Sequence[Record]) -> str:
    """How many cells ended how, and what is neither equal nor refused."""
    results = ("equal", "refused", "none", "BARE", "WRONG", "CRASH")
    found = {cell: [r["result"] for r in records if r["cell"] == cell] for cell in CELLS}
    found = {cell: ends for cell, ends in found.items() if ends}
    found[f"all {len(records):,} cells"] = [record["result"] for record in records]
    rows = [[cell, *(f"{ends.count(one):,}" for one in results)] for cell, ends in found.items()]
    head = f"{len({record['model'] for record in records})} models"
    lines = [harness.table([head, *results], rows).rstrip()]
    bad = [record for record in records if record["result"] not in GOOD]
    for record in sorted(bad, key=lambda r: (r["result"], r["cell"])):
        kind = " ".join(filter(None, [record["result"], record.get("type")]))
        lines += ["", f"{record['model']}, {record['cell']}: {kind} {record.get('where', '')}"]
        lines.append("    " + "\n    ".join(record["text"].strip().splitlines()[:3])[:400])
    return "\n".join(lines) + "\n"


def main() -> None:
    """Runs what is to be run, prints the table."""
    given = options()
    if given.worker:
        return worker()
    (models, cells), out = chosen(given), pathlib.Path(given.out)
    out.mkdir(parents=True, exist_ok=True)
    sources = [*(FOLDER / "sweep_models").glob("*.py"), FOLDER / "sweep_cells.py"]
    store = harness.Records(given, models=harness.digest(*sorted(sources)))
    process, shown = Worker(given.seconds, out / "log.txt"), []
    try:
        for model in models:
            make = functools.partial(sweep, process, model, cells)
            anew = is_bad if given.retry else lambda record: False
            record = store.run(model, {"model": model, "cells": cells}, make, anew)
            shown += record["cells"] if record else []
    finally:
        process.close()
    (out / "table.md").write_text(table(shown), encoding="utf-8")
    harness.show(given, counts(shown))
    sys.exit(1 if is_bad({"cells": shown}) else 0)


if __name__ == "__main__":
    main()
