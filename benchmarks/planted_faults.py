"""Plants sixty faults, one after the other, and counts those that the tests catch.

    python benchmarks/planted_faults.py --check
    python benchmarks/planted_faults.py
    python benchmarks/planted_faults.py --only map75-at-070 huber-without-half --whole

Works in a copy of the checkout, which is not changed. Each fault has a record in `--out`, and
is tried in stages, which end at the first test that fails:
  beside  the examples in the module's docstrings; the test file of its name, and the one
          of its package that names most of what the module defines
  folder  the other tests of its package; of a package without a folder in tests/, the
          files that name most of what the module defines
  whole   with --whole: the default suite
In the end the tests that caught something run without any fault, which takes minutes: one
that fails then has caught nothing. `fault_texts.py` holds the faults.
"""

from __future__ import annotations

import argparse
import ast
import collections
import contextlib
import functools
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

import harness
from fault_texts import FAULTS

ROOT = harness.ROOT
STAGES = ("beside", "folder", "whole")
CAUGHT, PASSED, TIMEOUT, ERROR = "caught", "passed", "timeout", "error"
_MOST = 8  # test files for a module whose package has no folder in tests/
# Fails with any fault, as the text of that is missing.
OWN_TEST = "test_planted_faults.py"
_LEFT_OUT = shutil.ignore_patterns(
    *(".git", ".venv*", "__pycache__", ".*_cache", ".hypothesis", "*.egg-info"),
    *("build", "dist", OWN_TEST),
)
_FAILED = re.compile(r"^(?:FAILED|ERROR) (\S.*?)(?: - .*)?$", re.MULTILINE)

Fault = tuple[str, str, str]
Record = dict[str, Any]


def sources(root: pathlib.Path, folder: str) -> dict[pathlib.Path, str]:
    """Path relative to `root` → text, of each Python file of a folder."""
    paths = sorted((root / folder).rglob("*.py"))
    return {path.relative_to(root): path.read_text(encoding="utf-8") for path in paths}


def place(fault: Fault, package: dict[pathlib.Path, str]) -> pathlib.Path:
    """The file that holds the text of a fault; ValueError unless it is one, and parses after."""
    name, old, new = fault
    found = [path for path, text in package.items() for _ in range(text.count(old))]
    if len(found) != 1:
        where = f" ({', '.join(map(str, found))})" if found else ""
        raise ValueError(f"{name}: its text occurs {len(found)} times in tfkd/{where}: {old}")
    if old == new:
        raise ValueError(f"{name}: the fault changes nothing.")
    try:
        ast.parse(package[found[0]].replace(old, new))
    except SyntaxError as error:
        raise ValueError(f"{name}: {found[0]} is no Python with the fault: {error}") from None
    return found[0]


def places(faults: Sequence[Fault], package: dict[pathlib.Path, str]) -> dict[str, pathlib.Path]:
    """Name → file, of all faults; ends the program with a list of those that can't be planted."""
    found, problems = {}, []
    for fault in faults:
        try:
            found[fault[0]] = place(fault, package)
        except ValueError as error:
            problems.append(str(error))
    names = collections.Counter(name for name, *_ in faults)
    files = collections.Counter(found.values())
    problems += [f"{name}: two faults have this name." for name, n in names.items() if n > 1]
    problems += [f"{path}: {n} faults are in this file." for path, n in files.items() if n > 1]
    if problems:
        sys.exit("\n".join([*problems, "Write these faults anew in benchmarks/fault_texts.py."]))
    return found


def mentions(path: pathlib.Path, package: dict[pathlib.Path, str], test: str) -> int:
    """How often a test names the module or what it defines at its top."""
    body = ast.parse(package[path]).body
    kinds = (ast.FunctionDef, ast.ClassDef)
    names = [node.name for node in body if isinstance(node, kinds) and node.name[0] != "_"]
    return len(re.findall(rf"\b(?:{'|'.join([path.stem, *names])})\b", test))


def test_files(
    path: pathlib.Path, package: dict[pathlib.Path, str], tests: dict[pathlib.Path, str]
) -> dict[str, list[str]]:
    """What pytest is given in each stage for a fault in the file `path`."""
    folder = pathlib.Path("tests", *path.parent.parts[1:])
    while folder.name != "tests" and not any(folder in test.parents for test in tests):
        folder = folder.parent
    alone = folder.name == "tests"
    named = f"test_{path.parts[1].removesuffix('.py') if alone else path.stem}.py"
    known = [t for t in tests if t.name.startswith("test_") and folder in t.parents]
    known = [t for t in known if t.name != OWN_TEST]
    known.sort(key=lambda t: (t.name != named, -mentions(path, package, tests[t])))
    exact = sum(t.name == named for t in known[:1])
    ranked = [str(t) for t in known][: _MOST if alone else None]
    # Tests first: tests/conftest.py prepares TensorFlow before the docstrings use it.
    return {
        "beside": [*ranked[: exact + 1], str(path)],
        "folder": ranked[exact + 1 :],
        "whole": [],
    }


def pytest(
    copy: pathlib.Path, files: Sequence[str], *options: str, seconds: float | None = None
) -> tuple[str, str]:
    """Runs tests of the copy → (caught, passed, timeout or error; what they printed)."""
    # An example that Hypothesis keeps would help to catch the next fault.
    shutil.rmtree(copy / ".hypothesis", ignore_errors=True)
    environment = {
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "TF_NUM_INTRAOP_THREADS": "1",
        "OMP_NUM_THREADS": "1",
        **os.environ,
        "PYTHONPATH": str(copy),
        "XDG_CACHE_HOME": str(copy / ".home"),
    }
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options, *files]
    with tempfile.TemporaryFile("w+") as said:
        # A group of its own, so that a test's own processes end with it.
        process = subprocess.Popen(
            command, cwd=copy, env=environment, stdout=said, stderr=said, start_new_session=True
        )
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            return TIMEOUT, ""
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        said.seek(0)
        text = said.read()
    if code in (3, 4):  # pytest's own error, or its arguments are wrong
        print(text[-2000:], file=sys.stderr)
        return ERROR, text
    return PASSED if code in (0, 5) else CAUGHT, text


def attempt(
    fault: Fault, path: pathlib.Path, copy: pathlib.Path, files: Sequence[str], seconds: float
) -> tuple[str, str]:
    """Plants a fault, runs tests, and takes it out → (result, the test that failed)."""
    _, old, new = fault
    text = (copy / path).read_text(encoding="utf-8")
    (copy / path).write_text(text.replace(old, new), encoding="utf-8")
    try:
        result, said = pytest(copy, files, "-x", "--tb=line", seconds=seconds)
    finally:
        (copy / path).write_text(text, encoding="utf-8")
    failed = [*_FAILED.findall(said), "the process ended"]
    return result, failed[0] if result == CAUGHT else ""


def left_out(folder: str, names: list[str]) -> set[str]:
    """What the copy does not need, for `shutil.copytree`: of what runs wrote, nothing."""
    if pathlib.Path(folder) == ROOT / "saved_models":
        return set(names) - {"README.md"}
    return _LEFT_OUT(folder, names)


def tried(
    fault: Fault,
    package: dict[pathlib.Path, str],
    tests: dict[pathlib.Path, str],
    copy: pathlib.Path,
    args: argparse.Namespace,
) -> Record:
    """The record of a fault; ChildProcessError where pytest could not run."""
    path = place(fault, package)
    record: Record = {"fault": fault[0], "file": str(path), "stages": {}, "test": ""}
    for stage in STAGES if args.whole else STAGES[:-1]:
        files, result = test_files(path, package, tests)[stage], PASSED
        if files or stage == "whole":
            result, record["test"] = attempt(fault, path, copy, files, args.seconds)
        if result == ERROR:
            raise ChildProcessError(fault[0])
        record["stages"][stage] = result
        print(f"{fault[0]}, {stage}: {result}", flush=True)
        if record["test"]:
            break
    return record


def verdict(record: Record) -> str:
    """The stage that caught a fault, or what its stages ended with."""
    caught = [stage for stage, result in record["stages"].items() if result == CAUGHT]
    ends = ", ".join(f"{stage} {result}" for stage, result in record["stages"].items())
    return caught[0] if caught else f"not caught ({ends})"


def failing_without(records: Sequence[Record], copy: pathlib.Path) -> set[str]:
    """The tests among those that caught something that fail without any fault, too."""
    tests = sorted({record["test"] for record in records if "::" in record["test"]})
    result, said = pytest(copy, tests, "--tb=no") if tests else (PASSED, "")
    if result == ERROR:
        sys.exit("The tests that caught something could not be run without the faults.")
    return {test for test in tests if test in _FAILED.findall(said)}


def table(records: Sequence[Record], broken: set[str]) -> str:
    """A row for each fault, and the counts; `broken` are tests that fail without any fault."""
    rows = []
    counts: collections.Counter[str] = collections.Counter()
    for record in records:
        found = "not caught (its test fails anyway)"
        if record["test"] not in broken:
            found = verdict(record)
        counts[found.partition(" (")[0]] += 1
        rows.append([record["fault"], record["file"], found, record["test"]])
    missed = counts.pop("not caught", 0)
    each = ", ".join(f"{counts[stage]} by {stage}" for stage in STAGES if counts[stage])
    text = harness.table(["fault", "file", "caught by", "test"], rows, left=4)
    return (
        f"{text}\n{len(records) - missed} of {len(records)} faults are caught: {each or 'none'}\n"
    )


def main() -> None:
    parser = harness.Parser(__doc__, "saved_models/planted_faults", check=True)
    parser.add_argument("--check", action="store_true", help="see that each can be planted")
    parser.add_argument("--only", nargs="+", default=[], metavar="FAULT", help="all by default")
    whole = "end with the default suite: minutes a fault"
    parser.add_argument("--whole", action="store_true", help=whole)
    parser.add_argument("--seconds", type=float, default=400.0, help="longest time of a stage")
    args = parser.parse_args()
    if unknown := sorted(set(args.only) - {name for name, *_ in FAULTS}):
        parser.error(f"--only names faults of fault_texts.py. Received: {unknown}")
    package, tests = sources(ROOT, "tfkd"), sources(ROOT, "tests")
    where = places(FAULTS, package)
    if args.check:
        folders = {path.parts[1] for path in where.values()}
        text = f"{len(where)} faults can be planted, in {len(folders)} modules and packages."
        return harness.show(args, text)
    # Ended from outside it must end pytest, too, and remove the copy.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    code = harness.digest(*(ROOT / path for path in tests), ROOT / "setup.cfg")
    store, records = harness.Records(args, tests=code), []
    with tempfile.TemporaryDirectory() as folder:
        copy = pathlib.Path(folder, "tfkd")
        shutil.copytree(ROOT, copy, ignore=left_out)
        for fault in FAULTS:
            if args.only and fault[0] not in args.only:
                continue
            make = functools.partial(tried, fault, package, tests, copy, args)
            run = {"fault": fault, "whole": args.whole}
            with contextlib.suppress(ChildProcessError):  # nothing is known: the next run tries
                if record := store.run(fault[0], run, make):
                    records.append(record)
        harness.show(args, table(records, failing_without(records, copy)))


if __name__ == "__main__":
    main()
