"""Every script answers to --help, has a smallest form that runs, and keeps records apart."""

import argparse
import json
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import scripts

sys.path.insert(0, str(scripts.ROOT / "benchmarks"))

import harness
import results

PATHS = [*(scripts.ROOT / "benchmarks").glob("*.py"), *(scripts.ROOT / "examples").glob("*.py")]
SCRIPTS = {
    path.relative_to(scripts.ROOT).as_posix(): text
    for path in sorted(PATHS)
    if '__name__ == "__main__"' in (text := path.read_text(encoding="utf-8"))
}
FORMS = [n for n in SCRIPTS if n.startswith("benchmarks/") and n != "benchmarks/results.py"]
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
        own = flags_of(SCRIPTS[name])
        assert [flag for flag in own if flag not in answer.stdout] == [], name


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMS)
def test_the_smallest_form_runs(name, tmp_path):
    if "before_after" in name and not (scripts.ROOT / ".git").exists():
        pytest.skip("compares with a commit")
    found = tmp_path / "found.json"
    done = scripts.run(name, "--smallest", "--json", str(found), timeout=1200)  # of a busy machine
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    assert not re.search(r"± nan|\bnan\b", done.stdout)
    record = json.loads(found.read_text(encoding="utf-8"))
    assert results.section(record).startswith(f"    python {name} --smallest\n\nCommit ")


THREADS = """
import sys
sys.path.insert(0, "benchmarks")
import harness, made_up
parser = harness.Parser("", base=made_up.base, data=made_up.cifar)
parser.add_argument("--base", required=True)
parser.add_argument("--data")
parser.add_argument("--threads", type=int, default=0)
args = parser.parse_args(["--smallest", "--threads=1", "--data=mine.npz"])
harness.threads(args.threads)
import tensorflow as tf
print(args.data, (harness.pathlib.Path(args.base) / "teacher.json").exists())
print(tf.config.threading.get_intra_op_parallelism_threads())
"""


def test_threads_are_limited_before_a_made_up_model_begins_tensorflow():
    command = [sys.executable, "-c", THREADS]
    done = subprocess.run(command, capture_output=True, text=True, cwd=scripts.ROOT, timeout=300)
    assert done.stdout.split() == ["mine.npz", "True", "1"], done.stderr[-2000:]


def test_every_other_file_is_imported_by_a_script():
    texts = {path.stem: path.read_text(encoding="utf-8") for path in PATHS}
    helpers = [
        path.stem for path in PATHS if path.relative_to(scripts.ROOT).as_posix() not in SCRIPTS
    ]
    imported = "|".join(helpers)
    found = {
        n for text in texts.values() for n in re.findall(rf"(?:import|from) ({imported})\b", text)
    }
    assert set(helpers) - found == set()


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


@pytest.mark.slow
def test_a_script_keeps_settings_apart_and_names_records_of_an_older_package(tmp_path):
    for folder in ("tfkd", "benchmarks", "examples"):
        shutil.copytree(scripts.ROOT / folder, tmp_path / folder)
    script, out = tmp_path / "benchmarks" / "model_sweep.py", tmp_path / "out"

    def sweep(cells):
        command = [sys.executable, script, "--only=linear", f"--cells={cells}", f"--out={out}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    assert "linear: finished" in sweep("freeze")
    assert "linear: finished" in sweep("keras")
    assert len(list(out.glob("*.json"))) == 2
    assert "finished" not in sweep("freeze")
    with (tmp_path / "tfkd" / "checks.py").open("a", encoding="utf-8") as file:
        file.write("# changed\n")
    said = sweep("freeze")
    assert "old record left" in said and "linear: finished" in said
    assert len(list(out.glob("*.json"))) == 3


RECORD = {
    "command": "python benchmarks/x.py --rounds 3",
    "commit": "abc1234",
    "date": "2026-11-27",
    "processor": "AMD EPYC",
    "cores": 2,
    "versions": {"tfkd": "0.1.0", "numpy": "2.4.6"},
    "variables": {"OMP_NUM_THREADS": "1"},
    "code": {"package": "of another commit"},
    "table": "| a | b |\n|---|---:|\n| x | 1.5 |\n\nAnd:\n\n| c |\n|---|\n| 7 |\n",
}
HEADING = """    python benchmarks/x.py --rounds 3

Commit abc1234, 2026-11-27, AMD EPYC, 2 cores; tfkd 0.1.0, numpy 2.4.6, OMP_NUM_THREADS=1.

"""


def test_blocks_hold_what_the_records_say(tmp_path, monkeypatch):
    monkeypatch.setattr(harness, "RECORDS", tmp_path)
    (tmp_path / "x.json").write_text(json.dumps(RECORD))
    begin, end = "<!-- record: x{} -->\n", "<!-- end record -->"
    page = f"## T\n\nBy hand.\n\n{begin.format('')}{end}\n\nSeen.\n"
    whole = results.filled(page)
    assert whole == page.replace(end, HEADING + RECORD["table"] + end)
    assert results.faults(whole) == [] and results.faults(page) != []
    altered = results.faults(whole.replace("| x | 1.5 |", "| x | 1.6 |"))
    assert altered == ["x: '| x | 1.6 |', of the record '| x | 1.5 |'"]

    parts = f"## T\n\n{begin.format(' table=2')}{end}\n{begin.format(' table=1')}{end}\n"
    second, first = (block["held"] for block in results.BLOCK.finditer(results.filled(parts)))
    assert second == HEADING + "| c |\n|---|\n| 7 |\n"
    assert first == "| a | b |\n|---|---:|\n| x | 1.5 |\n"
    with pytest.raises(ValueError, match="table=3.*made 2 tables"):
        results.filled(parts.replace("table=2", "table=3"))
    assert results.notes(whole) == ["x: made with commit abc1234, the package has changed"]


def test_what_has_no_record_has_to_say_so(tmp_path, monkeypatch):
    monkeypatch.setattr(harness, "RECORDS", tmp_path)
    held = "    python benchmarks/y.py --data a.npz \\\n        --rounds 3\n\n| 1 |\n|---|\n"
    page = f"## T\n\n{{}}\n\n<!-- record: y -->\n{held}<!-- end record -->\n"
    assert results.filled(page) == page
    (fault,) = results.faults(page)
    assert "## T" in fault and "without a record" in fault
    assert results.faults(page.format("*Made without a record.*")) == []
    assert results.notes(page) == ["y: no record yet; remake y"]
    words = results.command_of(page, "y").split()
    assert words[1:] == ["benchmarks/y.py", "--data", "a.npz", "--rounds", "3"]
    assert results.placed(words, tmp_path)[3] == str(tmp_path / "a.npz")
    (tmp_path / "z.json").write_text(json.dumps({**RECORD, "out": "/home/me/x"}))
    assert results.faults(page)[:2] == [
        "z.json: no block of RESULTS.md shows it",
        "z.json: names a folder of one machine",
    ]


def test_results_are_those_of_the_records():
    assert results.faults(results.PAGE.read_text(encoding="utf-8")) == []


def test_a_kept_command_names_no_folder_of_this_machine():
    inside = str(scripts.ROOT / "saved_models" / "base")
    words = ["benchmarks/x.py", "--data=/home/me/a.npz", "--json", "b.json", "--base", inside]
    assert harness.command([*words, "--json=c", "--arm", "a, b"]) == (
        "python benchmarks/x.py --data=a.npz --base saved_models/base --arm 'a, b'"
    )


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
