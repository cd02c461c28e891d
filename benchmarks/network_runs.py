"""Runs a check for many networks, each in a separate process, one after the other.

A benchmark parses its flags here before it imports TensorFlow, and gives `main` a function
that checks one network and one that makes a table of the records.
"""

from __future__ import annotations

import argparse
import pathlib
import subprocess
import sys
from collections.abc import Callable, Sequence

import harness

import tfkd

Record = harness.Record


def parse(script: str, doc: str, smallest: Sequence[str]) -> argparse.Namespace:
    """The flags that all these benchmarks have.

    Args:
        script: the file of the benchmark; records go to `saved_models/<its name>`.
        doc: its docstring.
        smallest: the networks of its smallest form.
    """
    out = f"saved_models/{pathlib.Path(script).stem}"
    parser = harness.Parser(doc, out, networks=list(smallest))
    parser.add_argument("--networks", nargs="+", metavar="NAME", help="all by default")
    parser.add_argument("--seed", type=int, default=0, help="of weights, images and choices")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    return parser.parse_args()


def main(
    script: str,
    args: argparse.Namespace,
    every: Sequence[str],
    check: Callable[[str, int], Record],
    finish: Callable[[list[Record], pathlib.Path], tuple[str, bool]],
) -> None:
    """Runs what is still to be run, then writes and prints the table; exits with 1 if it fails.

    Args:
        script: the file of the benchmark.
        args: what `parse` returned.
        every: names of the networks.
        check: (network, seed) → its record; `failures` in it says what does not hold.
        finish: (records, folder) → the table, and whether everything holds.
    """
    names, out = args.networks or list(every), pathlib.Path(args.out)
    if unknown := sorted(set(names) - set(every)):
        sys.exit(f"--networks: {', '.join(unknown)} not known, expected of {', '.join(every)}")
    store, found, broken = harness.Records(args), {}, []
    for name in [args.one] if args.one else names:
        run = {"network": name, "seed": args.seed}
        file = store.file(name, run)
        if args.one:
            record = store.run(name, run, lambda: check(args.one, args.seed))
            print(f"{name}: {'; '.join(record['failures']) or 'holds'}", flush=True)
            return
        if file is None and not args.table:
            command = [sys.executable, script, f"--one={name}", f"--out={out}"]
            done = subprocess.run([*command, f"--seed={args.seed}"], check=False)
            broken += [name] if done.returncode else []
        if file or store.path(name, run).exists():
            found[name] = store.run(name, run, dict)
    if not found:
        sys.exit(f"no network has a record in {out}")
    text, holds = finish(list(found.values()), out)
    if broken:
        text += f"Ended with an error: {', '.join(broken)}.\n"
    if left := [name for name in names if name not in found and name not in broken]:
        text += f"Not run: {', '.join(left)}.\n"
    tfkd.artifacts.write_text(out / "table.md", text)
    harness.show(args, text, records=list(found.values()))
    sys.exit(0 if holds and not broken else 1)
