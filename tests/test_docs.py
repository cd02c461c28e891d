"""The troubleshooting page names messages that the package has; blocks of other pages run."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
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


@pytest.mark.parametrize("name", ["report.md"])
def test_the_blocks_of_a_page_run_one_after_the_other(name, tmp_path, monkeypatch):
    """Twice in the same folder, as a reader may."""
    from tfkd import report

    pytest.importorskip("PIL")
    text = (ROOT / "docs" / name).read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, flags=re.S | re.M)
    assert blocks
    monkeypatch.chdir(tmp_path)
    # The plots are drawn by other tests.
    monkeypatch.setattr(report.RunReport, "draw", lambda self, folder: {})
    for _ in range(2):
        namespace = {"__name__": name}
        for number, block in enumerate(blocks, 1):
            exec(compile(block, f"docs/{name}, block {number}", "exec"), namespace)
