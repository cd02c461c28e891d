"""The README's Python runs as it stands; its commands exist, and its figures are in RESULTS.md."""

import configparser
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCS = sorted((ROOT / "docs").glob("*.md"))
RESULTS = (ROOT / "benchmarks" / "RESULTS.md").read_text(encoding="utf-8")
NUMBER = r"(?<![\w.])[−-]?(\d[\d,]*(?:\.\d+)?)(?![\w.]*\d)"
UNIT = r" ?(?:%|points?|times|ms|µs|s|seconds|minutes|KiB|MiB|MB)(?![\w%])"
# Settings and limits, which no script measures.
NOT_MEASURED = {
    "under 5 minutes": "a bound of examples/detection.py, which took 160 s",
    "More than 1 %": "the share of positions at which an export warns",
}


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.S | re.M)


def claims(text):
    """(spreads, numbers): all "a ± b", and each number with a decimal or a unit of results."""
    demo = "<!-- demo table: begin -->.*?<!-- demo table: end -->"
    code = rf"{demo}|^```.*?^```|`[^`\n]*`|<!--.*?-->"
    text = re.sub(code, "", text, flags=re.S | re.M)
    versions = r"(?:Python|[Kk]eras|[Tt]ensor[Ff]low|TensorRT|Apache)[ -]\d[\d.]*(?: to \d[\d.]*)?"
    text = re.sub(versions, "", text)
    for phrase in NOT_MEASURED:
        text = text.replace(phrase, "")
    spreads = re.findall(rf"{NUMBER} ± {NUMBER}", text)
    text = re.sub(rf"{NUMBER} ± {NUMBER}", "", text)
    with_unit = rf"{NUMBER}(?=(?: (?:to|→|against) {NUMBER})?{UNIT})"
    found = [match[1] for match in re.finditer(with_unit, text)]
    return spreads, found + [n for n in re.findall(NUMBER, text) if "." in n and n not in found]


def rounds_to(value, shown):
    """Whether a value of RESULTS.md may be shown with these digits."""
    digits = len(shown.partition(".")[2])
    return abs(float(value.replace(",", "")) - float(shown.replace(",", ""))) <= (
        0.5 * 10.0**-digits + 1e-9
    )


def unbacked(text):
    """The figures of a text that RESULTS.md does not hold."""
    spreads, numbers = claims(text)
    held, known = (
        set(re.findall(rf"{NUMBER} ± {NUMBER}", RESULTS)),
        set(re.findall(NUMBER, RESULTS)),
    )
    wrong = [
        f"{a} ± {b}"
        for a, b in spreads
        if not any(rounds_to(x, a) and rounds_to(y, b) for x, y in held)
    ]
    return wrong + [number for number in numbers if number not in known]


def test_figures_are_told_from_settings_and_versions():
    text = "Keras 3.15 at T = 4, 300 images: 1.4 to 10 times, −71.43 ± 0.75, 97.0 → 96.5 %, (66.6)."
    spreads, numbers = claims(text + " `x = 7.7`\n```\n8.8 %\n```\n")
    assert spreads == [("71.43", "0.75")]
    assert set(numbers) == {"1.4", "10", "97.0", "96.5", "66.6"}
    assert rounds_to("71.43", "71.4") and not rounds_to("71.43", "71.5")
    assert unbacked("83.21 times faster, 98.76 ± 5.43 %") == ["98.76 ± 5.43", "83.21"]


@pytest.mark.parametrize("path", ["README.md", *(f"docs/{p.name}" for p in DOCS)])
def test_every_figure_is_in_the_results(path):
    text = (ROOT / path).read_text(encoding="utf-8")
    assert unbacked(text) == []


def test_what_is_not_measured_is_still_said():
    texts = README + "".join(path.read_text(encoding="utf-8") for path in DOCS)
    assert [phrase for phrase in NOT_MEASURED if phrase not in texts] == []


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
