"""Every script answers to --help, has a smallest form that runs, and keeps records apart."""

import argparse
import json
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import scripts

sys.path.insert(0, str(scripts.ROOT / "benchmarks"))

import harness

PATHS = [*(scripts.ROOT / "benchmarks").glob("*.py"), *(scripts.ROOT / "examples").glob("*.py")]
SCRIPTS = {
    path.relative_to(scripts.ROOT).as_posix(): text
    for path in sorted(PATHS)
    if '__name__ == "__main__"' in (text := path.read_text(encoding="utf-8"))
}
FORMS = [n for n in SCRIPTS if n.startswith("benchmarks/") and n != "benchmarks/harness.py"]
# Ends as the script does, and says whether TensorFlow was imported.
HELP = """
import runpy, sys
sys.argv = [sys.argv[1], "--help"]
sys.path.insert(0, sys.argv[0].rpartition("/")[0])
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as end:
    assert not end.code, end.code
assert "tensorflow" not in sys.modules and "torch" not in sys.modules
"""


def flags_of(source):
    """The flags that a script defines for users."""
    found = re.findall(r'add_argument\(\s*"(--[\w-]+)"([^\n]*)', source)
    names = [name for name, rest in found if "SUPPRESS" not in rest]
    return [*names, *(f"--{name}" for name in re.findall(r'\bflag\(\s*"([\w-]+)"', source))]


@pytest.mark.slow
def test_help_shows_all_flags_and_ends_before_tensorflow_is_imported():
    def ask(name):
        command = [sys.executable, "-c", HELP, str(scripts.ROOT / name)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60)

    with ThreadPoolExecutor(2) as pool:
        answers = dict(zip(SCRIPTS, pool.map(ask, SCRIPTS), strict=True))
    for name, answer in answers.items():
        assert answer.returncode == 0, name + answer.stderr
        assert "usage:" in answer.stdout, name
        own = [] if "harness" in name else flags_of(SCRIPTS[name])
        assert [flag for flag in own if flag not in answer.stdout] == [], name


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMS)
def test_the_smallest_form_runs(name, tmp_path):
    if "before_after" in name and not (scripts.ROOT / ".git").exists():
        pytest.skip("compares with a commit")
    # These two keep records where they are told.
    options = {"model_sweep": ["--out", f"{tmp_path}/records.jsonl"], "real_models": []}
    more = options.get(name.split("/")[1].removesuffix(".py"), ["--json", f"{tmp_path}/found.json"])
    if "real_models" in name:
        more = ["--out", str(tmp_path)]
    done = scripts.run(name, "--smallest", *more, timeout=1200)  # of a busy machine
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    assert not re.search(r"± nan|\bnan\b", done.stdout)
    found = tmp_path / "found.json"
    if found.exists():
        assert harness.section(found).startswith(f"    python {name} --smallest")


def test_every_example_has_a_test_that_runs_it():
    here = scripts.ROOT / "tests" / "examples"
    tests = "".join(path.read_text(encoding="utf-8") for path in here.glob("test_*.py"))
    assert [n for n in SCRIPTS if n.startswith("examples/") and f'"{n}"' not in tests] == []


def records(folder, **flags):
    args = {"out": str(folder), "table": False, "old": False, **flags}
    return harness.Records(argparse.Namespace(**args), images="0123")


def test_other_settings_and_other_code_are_other_records(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(harness, "environment", lambda: {"commit": "aaaa111"})
    monkeypatch.setattr(harness, "code", lambda: {"package": "one"})
    made = []

    def run(store, **settings):
        return store.run("alone, 0", settings, lambda: made.append(settings) or {"n": len(made)})

    assert run(records(tmp_path), epochs=3)["n"] == 1
    assert run(records(tmp_path), epochs=1)["n"] == 2
    assert run(records(tmp_path), epochs=3)["n"] == 1
    assert len(list(tmp_path.glob("alone-0-*.json"))) == 2
    assert run(harness.Records(records(tmp_path).args, images="other"), epochs=3)["n"] == 3

    monkeypatch.setattr(harness, "code", lambda: {"package": "two"})
    capsys.readouterr()
    assert run(records(tmp_path, old=True), epochs=1)["n"] == 2
    assert "old record used" in capsys.readouterr().out
    assert run(records(tmp_path, table=True), epochs=1)["n"] == 2
    assert run(records(tmp_path, table=True), epochs=7) is None
    capsys.readouterr()
    assert run(records(tmp_path), epochs=1)["n"] == 4
    said = capsys.readouterr().out
    assert "old record left" in said and "commit aaaa111" in said
    found = [json.loads(path.read_text()) for path in tmp_path.glob("*.json")]
    assert sorted(one["record"]["n"] for one in found) == [1, 2, 3, 4]
    assert {one["made_by"]["code"]["package"] for one in found} == {"one", "two"}


def test_tables_spreads_and_turns():
    assert harness.spread([71.5]) == "71.50"
    assert harness.spread([1.0, 2.0, 4.0], 1) == "2.3 ± 1.5"  # √(7/3) = 1.53
    assert harness.table(["a", "b"], [["x", 1]]) == "| a | b |\n|---|---:|\n| x | 1 |\n"
    order = []
    times = harness.in_turns({n: lambda n=n: order.append(n) for n in "ab"}, 2, {"a": 1, "b": 2})
    assert "".join(order) == "ab" + "abb" + "bba"  # a warm-up, and the first one changes
    assert {name: len(values) for name, values in times.items()} == {"a": 2, "b": 4}


def test_the_formula_for_workers_and_its_loopback():
    from distributed_tables import on_loopback, paper

    one = {"one": 100.0, "bytes": 1e6, "gathered": 2e5, "gathers": 1, "reduces": 6}
    # 0.1 s; 1.75 and 1.4 MB at 1 GB/s; 13 · 7 hops of 20 µs.
    assert paper(one, 8, 1e9, 6) == pytest.approx(0.1 + 1.75e-3 + 1.4e-3 + 91 * 20e-6)
    # 1 MB in 4 ms, a hop in 0.5 ms: 1.2 MB in 4.8 ms, 13 hops.
    one |= {"all-reduce": 5.0, "one number": 1.0}
    assert on_loopback(one) == pytest.approx(100 + 4.8 + 6.5)
