"""What the README names exists; every figure of README and docs is in RESULTS.md."""

import configparser
import re
from pathlib import Path

import pytest

import tfkd

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
    code = rf"{demo}|^```.*?^```|`[^`\n]*`|<!--.*?-->|\]\([^)\s]*\)"  # and links
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


def test_the_readme_is_short_and_links_every_page():
    assert README.count("\n") <= 180
    assert [p.name for p in DOCS if f"(docs/{p.name})" not in README] == []


def test_make_targets_exist():
    targets = set(re.findall(r"\bmake (\w+)", "\n".join(blocks("sh"))))
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert {"demo", "test"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, flags=re.M), target


def test_extras_exist_and_are_explained():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    extras = set(config["options.extras_require"])
    page = (ROOT / "docs" / "installation.md").read_text(encoding="utf-8")
    assert set(re.findall(r"`\[(\w+)\]`", page)) == extras
    texts = README + "".join(path.read_text(encoding="utf-8") for path in DOCS)
    named = re.findall(r'"(?:tfkd|\.)\[([\w,]+)\]"', texts)
    assert {extra for group in named for extra in group.split(",")} <= extras


def test_modules_exist():
    page = (ROOT / "docs" / "modules.md").read_text(encoding="utf-8")
    names = set(re.findall(r"^\| `tfkd\.(\w+)`", page, flags=re.M))
    assert len(names) > 15
    assert [name for name in names if not hasattr(tfkd, name)] == []


def test_the_demo_table_is_filled():
    table = re.search(r"demo table: begin -->(.*?)<!-- demo table: end", README, flags=re.S)
    rows = [line for line in table.group(1).splitlines() if line.startswith("|")]
    assert len(rows) == 6, "head, rule, teacher, student alone, student distilled, int8"
    assert all("±" in row for row in rows[3:])
