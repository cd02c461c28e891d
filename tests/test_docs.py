"""The Python of README and docs runs, and links lead somewhere; messages are in the package."""

import ast
import re
from pathlib import Path

import pytest

from tfkd import report

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))
WITH_PYTHON = [
    page for page in (ROOT / "README.md", *PAGES) if "```python" in page.read_text(encoding="utf-8")
]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
RUN = 3  # words of a message that must stand together in the source


def strings():
    """All strings of the package, with a mark where a value is put in."""
    found = []
    for path in (ROOT / "tfkd").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
            elif isinstance(node, ast.JoinedStr):
                parts = [p.value if isinstance(p, ast.Constant) else "\0" for p in node.values]
                found.append("".join(map(str, parts)))
    return "\n".join(found)


def runs(message):
    """Every three words of a message that stand between names, numbers and marks."""
    found = []
    for part in re.split(
        r"…|'[^']*'|`|\"[^\"]*\"|\b[A-Z]+\b|\d[\d.]*|[:,.;()\[\]]|expected|received", message
    ):
        words = part.split()
        found += [" ".join(words[i : i + RUN]) for i in range(len(words) - RUN + 1)]
    return found


def test_every_message_of_the_troubleshooting_page_is_in_the_package():
    source = " ".join(strings().split())
    rows = [line.split("|")[1] for line in PAGE.splitlines() if line.startswith("| ")]
    assert len(rows) > 60
    shown = [
        a or b for row in rows for a, b in re.findall(r"(?<!`)`([^`]+)`(?!`)|`` (.+?) ``", row)
    ]
    asked = [(message, runs(message)) for message in shown]
    assert sum(bool(parts) for _, parts in asked) > 60
    # Names that are put in may stand within three words: most of them must be there.
    gone = [m for m, parts in asked if sum(p in source for p in parts) < 0.6 * len(parts)]
    assert not gone, gone


def python_blocks(page):
    return re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.S | re.M)


def run(page, capsys):
    """What each block of a page prints; one after the other in this folder."""
    namespace, printed = {"__name__": "page"}, []
    for number, block in enumerate(python_blocks(page), 1):
        exec(compile(block, f"{page.name}, block {number}", "exec"), namespace)
        printed.append(capsys.readouterr().out)
        if re.search(r"^\w+\.fit\(", block, re.M):
            assert learned(printed[-1]), printed[-1]
    return printed


def learned(printed):
    """Whether what a training prints looks like success: accuracy, or AP50 of a detector."""
    accuracy = re.findall(r"val_accuracy: (\S+)", printed)
    precision = re.findall(r"^mean +\S+ +(\S+)", printed, re.M)
    return float(accuracy[-1]) > 0.9 if accuracy else float(precision[-1]) > 0.4


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", ROOT / "docs/report.md"], ids=lambda p: p.stem
)
def test_blocks_run_one_after_the_other(page, tmp_path, monkeypatch, capsys):
    for module in ("PIL", "ai_edge_litert", "sklearn"):
        pytest.importorskip(module)
    monkeypatch.chdir(tmp_path)
    # The plots are drawn by other tests.
    monkeypatch.setattr(report.RunReport, "draw", lambda self, folder: {})
    assert run(page, capsys)


LEFT = {  # what a page writes
    "README": ["student.tflite"],
    "distillation": ["student.keras"],
    "detection": ["detector.tflite"],
    "export": ["report/table.md", "report/table.json", "report/accuracy_latency.png"],
    "quantization": ["q.npz", "small.tflite", "small.onnx"],
}


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_PYTHON, ids=lambda p: p.stem)
def test_blocks_run_and_again_in_the_same_folder(page, tmp_path, monkeypatch, capsys):
    for module in ("ai_edge_litert", "matplotlib", "onnxruntime", "sklearn", "tf2onnx"):
        pytest.importorskip(module)
    monkeypatch.chdir(tmp_path)
    printed = run(page, capsys)
    if page.stem == "pruning":
        assert re.search(r"target 50.0 % fewer MACs, reached 5\d\.\d %", printed[1])
    assert [name for name in LEFT.get(page.stem, []) if not (tmp_path / name).is_file()] == []
    if any(tmp_path.iterdir()):
        run(page, capsys)


LINKED = ("README.md", "CONTRIBUTING.md", "benchmarks/RESULTS.md", "examples/DISTRIBUTED.md")
LINKING = [*(ROOT / name for name in LINKED), *PAGES]


@pytest.mark.parametrize("page", LINKING, ids=lambda p: p.stem)
def test_links_lead_to_files_and_headings(page):
    text = re.sub(r"^```.*?^```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.S | re.M)
    wrong = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?:", link):
            continue
        name, _, heading = link.partition("#")
        target = page.parent / name if name else page
        if not target.is_file() or (heading and heading not in headings(target)):
            wrong.append(link)
    assert wrong == []


def headings(page):
    """The anchors that Markdown makes of a page's headings."""
    titles = re.findall(r"^#+ (.+)", page.read_text(encoding="utf-8"), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
