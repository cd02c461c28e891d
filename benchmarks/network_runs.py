"""Runs a check for many networks, each in a separate process, one after the other.

A benchmark gives `main` a function that checks one network and one that makes a table
of the records. Each network leaves a JSON file in `--out`, and is not run again while
that is there; `--table` runs nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import tfkd

Record = dict[str, Any]


def parse(doc: str, every: Sequence[str], out: str, argv: Sequence[str] | None = None) -> Any:
    """The options that all these benchmarks have."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--out", default=out)
    parser.add_argument("--networks", nargs="+", choices=every, default=list(every), metavar="NAME")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--table", action="store_true", help="run nothing, only make the table")
    parser.add_argument("--one", choices=every, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def run_alone(script: str, name: str, args: Any) -> bool:
    """Runs `script --one name` in a process of its own; False if it ended with an error."""
    command = [sys.executable, script, "--one", name, f"--out={args.out}", f"--seed={args.seed}"]
    root = str(pathlib.Path(__file__).resolve().parent.parent)
    paths = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, check=False)
    return done.returncode == 0


def main(
    script: str,
    doc: str,
    every: Sequence[str],
    check: Callable[[str, int], Record],
    finish: Callable[[list[Record], pathlib.Path], tuple[str, bool]],
) -> None:
    """Runs what is still to be run, then writes and prints the table.

    Args:
        script: the file of the benchmark; records go to `saved_models/<its name>`.
        doc: its docstring.
        every: names of the networks.
        check: (network, seed) → its record; `failures` in it says what does not hold.
        finish: (records, folder) → the table, and whether everything holds.
    """
    args = parse(doc, every, f"saved_models/{pathlib.Path(script).stem}")
    out = pathlib.Path(args.out)
    if args.one:
        record = check(args.one, args.seed)
        tfkd.artifacts.write_json(out / f"{args.one}.json", record)
        print(f"{args.one}: {'; '.join(record['failures']) or 'holds'}", flush=True)
        return
    paths = {name: out / f"{name}.json" for name in args.networks}
    broken = []
    for name, path in paths.items():
        if not args.table and not path.exists() and not run_alone(script, name, args):
            broken.append(name)
    records = [json.loads(path.read_text()) for path in paths.values() if path.exists()]
    if not records:
        sys.exit(f"no network has a record in {out}")
    text, holds = finish(records, out)
    if broken:
        text += f"Ended with an error: {', '.join(broken)}.\n"
    left = [name for name in paths if name not in broken and not paths[name].exists()]
    if left:
        text += f"Not run: {', '.join(left)}.\n"
    tfkd.artifacts.write_text(out / "table.md", text)
    tfkd.artifacts.write_json(out / "results.json", records)
    print(text)
    sys.exit(0 if holds and not broken else 1)
