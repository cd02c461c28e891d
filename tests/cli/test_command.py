"""The command `tfkd`: verbs, flags, streams and exit codes."""

from __future__ import annotations

import errno
import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tfkd import cli
from tfkd.cli import exit_codes, parsing, quiet
from tfkd.cli.exit_codes import NotMetError, UsageError
from tfkd.cli.terminal import Progress, Terminal

ROOT = Path(__file__).resolve().parents[2]
TOY = '''
import warnings

def flags(parser):
    parser.examples("""
        tfkd toy file --max_drop=1
    """)
    parser.add_argument("name")
    parser.add_argument("--max_drop", type=float, default=0.0)

def run(args, terminal):
    terminal.say("working")
    print("what a library prints")
    warnings.warn("take care")
    warnings.warn("old", DeprecationWarning)
    if raised.get(args.name):
        raise raised[args.name]
    terminal.resume_hint = "tfkd resume there"
    if args.name == "interrupted":
        raise KeyboardInterrupt
    terminal.print({"name": args.name, "max drop": args.max_drop})
    return 0

raised = {}
'''


@pytest.fixture
def toy(monkeypatch, tmp_path):
    """A verb of its own beside those of tfkd; what it raises by name."""
    (tmp_path / "toy_verb.py").write_text(TOY)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "toy_verb", raising=False)
    monkeypatch.setattr(cli, "VERBS", (*cli.VERBS, parsing.Verb("toy", "toy_verb", "Plays")))
    import toy_verb

    return toy_verb.raised


def python(*arguments, **environment):
    env = {k: v for k, v in os.environ.items() if not k.startswith("TF_")} | environment
    env["PYTHONPATH"] = str(ROOT)
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)


def test_results_and_messages_go_to_streams_of_their_own(toy, capsys):
    assert cli.main(["toy", "a", "--max-drop=2"]) == 0
    out, err = capsys.readouterr()
    assert out.split() == ["name", "a", "max", "drop", "2.0"]
    assert "working" in err and "what a library prints" in err
    assert "warning: take care" in err and "old" not in err


def test_json_is_one_object_and_nothing_else(toy, capsys):
    assert cli.main(["toy", "a", "--max_drop", "0.5", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"name": "a", "max drop": 0.5}


def test_quiet_leaves_out_messages(toy, capsys):
    assert cli.main(["toy", "a", "--quiet"]) == 0
    assert "working" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ValueError("`path`: no images"), 3, "error: `path`: no images"),
        (TypeError("`x`: text"), 3, "error: `x`: text"),
        (FileNotFoundError("no file"), 3, "error: no file"),
        (ImportError("needs Pillow"), 3, "error: needs Pillow"),
        (UsageError("--a and --b"), 2, "error: --a and --b"),
        (NotMetError("accuracy fell"), 4, "error: accuracy fell"),
        (OSError(errno.ENOSPC, "No space left on device"), 5, "free some space"),
        (MemoryError(), 5, "smaller --batch_size"),
        (type("ResourceExhaustedError", (Exception,), {})("OOM"), 5, "OOM"),
    ],
)
def test_an_error_becomes_its_message_and_code(toy, capsys, error, code, said):
    toy["broken"] = error
    assert cli.main(["toy", "broken"]) == code
    err = capsys.readouterr().err
    assert said in err and "Traceback" not in err
    assert cli.main(["toy", "broken", "--debug"]) == code
    assert "Traceback" in capsys.readouterr().err


def test_a_fault_of_tfkd_is_shown_with_its_traceback(toy, capsys):
    toy["broken"] = KeyError("x")
    assert cli.main(["toy", "broken"]) == exit_codes.FAULT
    err = capsys.readouterr().err
    assert "Traceback" in err and "please report" in err


def test_an_interruption_says_how_to_go_on(toy, capsys):
    assert cli.main(["toy", "interrupted"]) == 130
    assert "interrupted; go on with: tfkd resume there" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["inspct"], "there is no verb 'inspct'. Did you mean 'inspect'?"),
        (["toy", "a", "--max_dorp=1"], "there is no flag --max_dorp. Did you mean '--max_drop'"),
        (["toy", "a", "b"], "unexpected argument 'b'"),
        (["toy"], "arguments are required: name"),
        (["toy", "a", "--max_drop=much"], "invalid float value: 'much'"),
        (["--vrsion"], "there is no flag --vrsion. Did you mean '--version'"),
        ([], "VERB"),
    ],
)
def test_wrong_usage(toy, capsys, argv, said):
    assert cli.main(argv) == exit_codes.USAGE
    out, err = capsys.readouterr()
    assert said in err and out == ""


def test_help_of_a_verb_has_examples(toy, capsys):
    assert cli.main(["toy", "--help"]) == 0
    assert "tfkd toy file --max_drop=1" in capsys.readouterr().out


@pytest.mark.parametrize("verb", cli.VERBS, ids=lambda verb: verb.name)
def test_every_verb_teaches(verb, capsys):
    assert cli.main([verb.name, "--help"]) == 0
    text = capsys.readouterr().out
    assert len(re.findall(rf"^  tfkd {verb.name}\b", text, re.M)) >= 2


def test_help_is_fast_and_imports_no_tensorflow():
    program = (
        "import sys; from tfkd import cli\n"
        "codes = [cli.main(['--help']), *(cli.main([v.name, '--help']) for v in cli.VERBS)]\n"
        "print(codes, 'tensorflow' in sys.modules, file=sys.stderr)"
    )
    # The processor's time, which does not count what else runs on the machine.
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = python("-c", program)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.stderr.strip() == f"{[0] * (1 + len(cli.VERBS))} False"
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5


def test_the_module_runs_as_a_command():
    done = python("-m", "tfkd", "nothing")
    assert done.returncode == 2 and done.stdout == "" and "there is no verb" in done.stderr


def test_a_terminal_without_the_characters_gets_others():
    code = "import sys; from tfkd.cli import main; sys.exit(main(['resumé']))"
    done = python("-c", code, PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert done.returncode == 2 and "there is no verb 'resum?'" in done.stderr


@pytest.mark.slow
def test_tensorflow_is_imported_without_noise():
    program = (
        "from tfkd.cli import quiet; quiet.import_tensorflow()\n"
        "import tensorflow as tf; print(float(tf.reduce_sum(tf.ones(3))))"
    )
    done = python("-c", program)
    assert (done.returncode, done.stdout, done.stderr) == (0, "3.0\n", "")


def test_what_is_no_noise_reaches_standard_error(capfd):
    with quiet.without_log_lines():
        os.write(2, b"WARNING: All log messages before absl::InitializeLog() is called are\n")
        os.write(2, b"I0000 00:00:1795818324.038991   19501 port.cc:153] oneDNN is on\n")
        os.write(2, b"2026-01-01 10:00:00.123456: W tensorflow/core/x.cc:1] slow\n")
        os.write(2, b"E0000 00:00:1795818324.038991   19501 dso_loader.cc:9] no libc\n")
        os.write(2, b"Segmentation fault\n")
    lines = capfd.readouterr().err.splitlines()
    assert [line[:5] for line in lines] == ["E0000", "Segme"]


def test_progress_without_a_terminal_is_a_line_now_and_then(capsys, monkeypatch):
    clock = iter(range(0, 1000, 2))
    monkeypatch.setattr("tfkd.cli.terminal.time.monotonic", lambda: float(next(clock)))
    assert sum(Terminal().track(range(4), "Reading")) == 6
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(" (")[0] for line in lines] == [
        f"Reading: {n} of 4" for n in (1, 2, 3, 4)
    ]
    assert sum(Terminal(as_json=True).track(range(4), "Reading")) == 6
    assert capsys.readouterr() == ("", "")


def test_the_time_left_counts_neither_compiling_nor_what_was_done_before(capsys, monkeypatch):
    clock = iter([0.0, 60.0, 66.0])  # seconds: a minute until the first step
    monkeypatch.setattr("tfkd.cli.terminal.time.monotonic", lambda: next(clock))
    bar = Progress(100, "train")
    bar.update(40)  # of which an interrupted run had made 39
    bar.update(43)
    assert capsys.readouterr().err.splitlines() == [
        "train: 40 of 100 (40%)",
        "train: 43 of 100 (43%), 1 min 54 s left",  # 57 steps of 2 s
    ]


def test_progress_on_a_terminal_is_a_bar_that_goes_away(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with Terminal().progress(2, "Reading") as bar:
        bar.advance(2, note="loss 1.5")
    text = capsys.readouterr().err
    assert "█" * 24 + " 2 of 2 (100%)" in text and "loss 1.5" in text and text.endswith(" \r")


def test_the_entry_point_is_main():
    text = (ROOT / "setup.cfg").read_text(encoding="utf-8")
    assert "tfkd = tfkd.cli:main" in text
