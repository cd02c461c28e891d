"""The README's Python runs as it stands, and its table and commands are real ones."""

import configparser
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.S | re.M)


@pytest.mark.slow
def test_python_blocks_run_one_after_the_other(tmp_path, monkeypatch, capsys):
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    pytest.importorskip("ai_edge_litert")
    monkeypatch.chdir(tmp_path)
    code = blocks("python")
    assert len(code) >= 3
    namespace = {"__name__": "readme"}
    for number, block in enumerate(code):
        exec(compile(block, f"README.md, block {number + 1}", "exec"), namespace)
    printed = capsys.readouterr().out
    assert "teacher" in printed and "Conv2D" in printed
    assert re.search(r"target 50.0 % fewer MACs, reached 5\d\.\d %", printed)
    assert namespace["small"].count_params() < namespace["model"].count_params()
    assert {"table.md", "table.json", "accuracy_latency.png"} <= {
        path.name for path in (tmp_path / "report").iterdir()
    }
    assert (tmp_path / "student.keras").is_file() and (tmp_path / "student.tflite").is_file()


def test_make_targets_exist():
    targets = set(re.findall(r"\bmake (\w+)", "\n".join(blocks("sh"))))
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert {"demo", "test"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, flags=re.M), target


def test_extras_and_modules_exist():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    extras = set(config["options.extras_require"])
    named = set(re.findall(r"`\[(\w+)\]`", README)) | set(re.findall(r'"tfkd\[(\w+)\]"', README))
    assert named <= extras and len(named) >= 5
    import tfkd

    for name in set(re.findall(r"^\| `tfkd\.(\w+)`", README, flags=re.M)):
        assert hasattr(tfkd, name), name


def test_the_demo_table_is_filled():
    table = re.search(r"demo table: begin -->(.*?)<!-- demo table: end", README, flags=re.S)
    rows = [line for line in table.group(1).splitlines() if line.startswith("|")]
    assert len(rows) == 6, "head, rule, teacher, student alone, student distilled, int8"
    assert all("±" in row for row in rows[3:])
