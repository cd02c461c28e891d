"""What the benchmarks share: flags, records of finished runs, timing in turns, tables.

Every script has `--help`, which answers before TensorFlow is imported, `--json FILE`, and
`--smallest`, a run of seconds on made-up data whose files go to a temporary folder. Scripts
that train keep a record of each finished run; see `Records`. RESULTS.md is made by
`results.py` from the files that scripts wrote by `--json=benchmarks/records/NAME.json`.
"""

from __future__ import annotations

import argparse
import ast
import datetime
import hashlib
import importlib.metadata
import json
import os
import pathlib
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
ROOT = pathlib.Path(__file__).resolve().parent.parent
for _folder in (ROOT / "examples", ROOT):  # scripts run from anywhere, and share examples
    if str(_folder) not in sys.path:
        sys.path.insert(0, str(_folder))

import shared

from tfkd import artifacts

Record = dict[str, Any]
RECORDS = ROOT / "benchmarks" / "records"
LONGEST = 2000  # characters of a figure in a record that is committed
PACKAGES = ("tfkd", "tensorflow", "tf_keras", "numpy")
# Of the environment: they change the order in which kernels add, and so the last bits.
VARIABLES = (
    "OMP_NUM_THREADS ONEDNN_MAX_CPU_ISA TF_ENABLE_ONEDNN_OPTS TF_NUM_INTRAOP_THREADS".split()
)
# Flags that say where things are or what is shown, not what a run is.
NO_SETTINGS = ("data", "json", "old", "out", "smallest", "table")


class Parser(argparse.ArgumentParser):
    """The flags of a script.

    Args:
        doc: its docstring, which `--help` shows.
        records: the folder of its records by default; adds --out, --old and --table.
        **smallest: values that flags have with --smallest if they are not given. A
            function is called for its value then: it makes up data.
    """

    def __init__(self, doc: str, records: str | None = None, **smallest: Any):
        super().__init__(description=doc, formatter_class=shared.Help, allow_abbrev=False)
        self.smallest = smallest
        self.add_argument("--smallest", action="store_true", help="seconds, on made-up data")
        self.add_argument("--json", help="a file for settings, machine, figures and table")
        if records is not None:
            self.add_argument("--out", default=records, help="folder of the records")
            self.add_argument("--table", action="store_true", help="run nothing, print the table")
            old = "reuse records of other versions of the code, and say so"
            self.add_argument("--old", action="store_true", help=old)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        given = sys.argv[1:] if args is None else list(args)
        values = {"out": tempfile.mkdtemp, **self.smallest} if "--smallest" in given else {}
        for action in self._actions:
            if action.dest in values:
                action.required = False
                self.set_defaults(**{action.dest: values[action.dest]})
        parsed = super().parse_args(given, namespace)
        makers = {name: make for name in values if callable(make := getattr(parsed, name, None))}
        if makers:
            threads(getattr(parsed, "threads", 0))  # before a made-up model begins TensorFlow
        for name, make in makers.items():
            setattr(parsed, name, make())
        return parsed


def settings(args: argparse.Namespace, *without: str) -> Record:
    """The flags that make a run what it is; `without` those that say which runs there are."""
    return {k: v for k, v in vars(args).items() if k not in (*NO_SETTINGS, *without)}


def threads(count: int) -> None:
    """Limits TensorFlow to so many threads; 0: as many as it likes."""
    if count:
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(count)
        tf.config.threading.set_inter_op_parallelism_threads(count)


def digest(*paths: str | os.PathLike) -> str:
    """SHA-256 of files by content; of a folder, of the files in it."""
    sha = hashlib.sha256()
    for path in map(pathlib.Path, paths):
        for file in [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file()):
            sha.update(f"{file.relative_to(path)}:{artifacts.sha256(file)}".encode())
    return sha.hexdigest()[:16]


def code(script: str | os.PathLike | None = None) -> dict[str, str]:
    """What a result depends on besides settings and data: package, script (this), versions."""
    package = hashlib.sha256()
    for file in sorted((ROOT / "tfkd").rglob("*.py")):
        package.update(f"{file.relative_to(ROOT)}:".encode() + file.read_bytes())
    script = script or getattr(sys.modules["__main__"], "__file__", None)
    source = ast.unparse(ast.parse(pathlib.Path(script).read_text())) if script else ""
    return {
        "package": package.hexdigest()[:16],
        "script": hashlib.sha256(source.encode()).hexdigest()[:16],
        **{name: importlib.metadata.version(name) for name in PACKAGES if name != "tfkd"},
    }


def commit() -> str:
    """The commit that is checked out; with a plus where Python files were changed since."""
    git = ["git", "-C", str(ROOT)]
    try:
        name, state = (
            subprocess.run([*git, *call], capture_output=True, text=True, check=True).stdout.strip()
            for call in (
                ["rev-parse", "--short", "HEAD"],
                ["status", "--porcelain", "-uno", "--", "*.py"],
            )
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return name + "+" * bool(state)


def environment() -> Record:
    """Commit, date, processor, versions and variables of what runs here and now."""
    from tfkd import report

    today = datetime.date.today().isoformat()
    set_to = {name: os.environ[name] for name in VARIABLES if name in os.environ}
    return {"commit": commit(), "date": today, **report.machine(), "variables": set_to}


class Records:
    """Records of finished runs: JSON files, each reused only for the very same run.

    A file is named after its run and a hash of all that made it: settings, content of the
    data, code of the package and of the script, versions. So two settings in one folder are
    two records. A record of older code is left where it is, named, and made anew, but for
    --table and --old, which use it.

    Args:
        args: with `out`, `table` and `old`, as `Parser(records=...)` makes them.
        data: digest of what the runs read, by name.
    """

    def __init__(self, args: argparse.Namespace, **data: str):
        self.folder, self.args, self.data = pathlib.Path(args.out), args, data
        self.code = code()

    def made_by(self, run: Record) -> Record:
        # By way of JSON: a tuple is a list there.
        return json.loads(json.dumps({"settings": run, "data": self.data, "code": self.code}))

    def path(self, name: str, run: Record) -> pathlib.Path:
        """The file of a run, `name-hash.json`; what else it writes has the same stem."""
        text = json.dumps(self.made_by(run), sort_keys=True)
        label = "".join(c if c.isalnum() or c in ".+" else "-" for c in name).replace("--", "-")
        return self.folder / f"{label}-{hashlib.sha256(text.encode()).hexdigest()[:10]}.json"

    def file(self, name: str, run: Record) -> pathlib.Path | None:
        """The file of a finished run; an old one counts where --table or --old is given."""
        path, wanted, old = self.path(name, run), self.made_by(run), []
        if path.exists():
            return path
        for file in sorted(self.folder.glob("*.json"), key=lambda file: -file.stat().st_mtime):
            found = json.loads(file.read_text(encoding="utf-8"))
            made = found.get("made_by") if isinstance(found, dict) else None
            if not made or found["name"] != name or made["settings"] != wanted["settings"]:
                continue
            # --table reads no data, and does not ask which they were.
            if made["data"] == wanted["data"] or self.args.table:
                if made["code"] == wanted["code"]:
                    return file
                old.append((file, found["commit"]))
        used = self.args.table or self.args.old
        for file, version in old[:1] if used else old:
            print(f"old record {'used' if used else 'left'}: {file}, commit {version}")
        return old[0][0] if old and used else None

    def run(
        self,
        name: str,
        run: Record,
        make: Callable[[], Record],
        anew: Callable[[Record], bool] = lambda record: False,
    ) -> Record | None:
        """The record of a run, made if there is none, with --table None then; or made `anew`."""
        if file := self.file(name, run):
            found = json.loads(file.read_text(encoding="utf-8"))["record"]
            if self.args.table or not anew(found):
                return found
        if self.args.table:
            return None
        began, found = time.time(), make()
        found.setdefault("minutes", (time.time() - began) / 60)
        whole = {"name": name, **environment(), "made_by": self.made_by(run), "record": found}
        artifacts.write_json(self.path(name, run), whole)
        print(f"{name}: finished in {found['minutes']:.1f} min", flush=True)
        return found


def in_turns(
    jobs: Mapping[str, Callable[[], Any]],
    rounds: int,
    each: int | Mapping[str, int] = 1,
    warmup: int = 1,
) -> dict[str, list[float]]:
    """Milliseconds of every call: in each round each job has its turn, the first one changing.

    So a machine that speeds up or slows down does so for all; compare the medians.

    Args:
        jobs: name → what is timed.
        rounds: turns of each.
        each: calls a turn, for all or by name.
        warmup: calls ahead that do not count.
    """
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for job in jobs.values():
        for _ in range(warmup):
            job()
    names = list(jobs)
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            for _ in range(each if isinstance(each, int) else each[name]):
                began = time.perf_counter()
                jobs[name]()
                times[name].append(1e3 * (time.perf_counter() - began))
    return times


def medians(times: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return {name: statistics.median(values) for name, values in times.items()}


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Mean ± sample standard deviation; one value alone as it is."""
    if len(values) < 2:
        return f"{values[0]:.{digits}f}" if len(values) else "–"
    return f"{statistics.mean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}"


def table(head: Sequence[str], rows: Iterable[Sequence[Any]], left: int = 1) -> str:
    """Markdown; the first `left` columns are flush left."""
    lines = [f"| {' | '.join(map(str, line))} |" for line in (head, *rows)]
    lines.insert(1, "|" + "---|" * left + "---:|" * (len(head) - left))
    return "\n".join(lines) + "\n"


def anywhere(value: Any) -> Any:
    """A value as any machine can have it: of a folder of this one the name."""
    path = pathlib.Path(value) if isinstance(value, str) else None
    if path is None or not path.is_absolute():
        return value
    return str(path.relative_to(ROOT)) if ROOT in path.parents else path.name


def command(words: Sequence[str]) -> str:
    """What was called, as any machine can call it, and without --json."""
    kept, words = [], list(words)
    while words:
        word = words.pop(0)
        if word == "--json":
            words = words[1:]
        elif not word.startswith("--json="):
            flag, equals, value = word.rpartition("=") if word[:2] == "--" else ("", "", word)
            kept.append(flag + equals + anywhere(value))
    return shlex.join(["python", *kept])


def show(args: argparse.Namespace, text: str, **found: Any) -> None:
    """Prints a table; writes it with settings, machine and figures to --json if given.

    A file in `RECORDS` is to be committed: figures that fill a screen are left out there.
    """
    print(text, flush=True)
    if args.json:
        script = os.path.relpath(sys.argv[0], ROOT)
        record = {"command": command([script, *sys.argv[1:]]), **environment(), "code": code()}
        if RECORDS in pathlib.Path(args.json).resolve().parents:
            found = {k: v for k, v in found.items() if len(json.dumps(v)) < LONGEST}
        artifacts.write_json(
            args.json, {**record, "settings": settings(args), "table": text, **found}
        )
