"""One page that holds a table, its pictures and its notes, and needs nothing else."""

from __future__ import annotations

import base64
import html
import pathlib
from collections.abc import Mapping
from typing import Any

_STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0; background: #f4f5f7; color: #1d2430; line-height: 1.5;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 32px 24px 48px; }
h1 { font-size: 1.6rem; margin: 0 0 4px; }
h2 { font-size: 1.05rem; margin: 0 0 12px; }
p { margin: 8px 0; }
.sub { color: #5b6472; margin: 0 0 20px; }
section { background: #fff; border: 1px solid #e1e4e9; border-radius: 10px;
  padding: 20px 24px; margin: 0 0 20px; overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 0.92rem;
  font-variant-numeric: tabular-nums; }
th { text-align: right; font-weight: 600; color: #5b6472; padding: 6px 12px;
  border-bottom: 2px solid #d5d9e0; white-space: nowrap; }
td { text-align: right; padding: 8px 12px; border-bottom: 1px solid #eceef1; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
td:first-child { font-weight: 600; white-space: normal; overflow-wrap: anywhere; min-width: 9em; }
tbody tr:last-child td { border-bottom: 0; }
.tag { display: inline-block; margin-right: 6px; padding: 0 8px; border-radius: 999px;
  font-size: 0.72rem; font-weight: 600; white-space: nowrap; }
.original { background: #e6e9ee; color: #414a58; }
.front { background: #dcefe8; color: #00614a; }
ul { margin: 0; padding-left: 20px; }
.figures { display: grid; gap: 20px;
  grid-template-columns: repeat(auto-fit, minmax(min(420px, 100%), 1fr)); }
.figures section { margin: 0; }
.figures img { width: 100%; height: auto; display: block; }
.notes { margin-top: 20px; color: #5b6472; font-size: 0.88rem; }
"""

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
<h1>{title}</h1>
<p class="sub">{sub}</p>
{body}
</main>
</body>
</html>
"""


def page(table: Any, figures: Mapping[str, pathlib.Path]) -> str:
    """Returns the page.

    Args:
        table: a `Table`.
        figures: what a picture shows → its PNG, which is copied into the page.
    """
    front, names = set(table.pareto()), [row.model for row in table.rows]
    parts = [_table(table, front)]
    sentences = [str(one) for one in table.against() if one.known]
    if sentences:
        items = "\n".join(f"<li>{html.escape(sentence)}</li>" for sentence in sentences)
        title = html.escape(f"Against {table.original}")
        parts.append(f"<section>\n<h2>{title}</h2>\n<ul>\n{items}\n</ul>\n</section>")
    if figures:
        found = "\n".join(_figure(title, path) for title, path in figures.items())
        parts.append(f'<div class="figures">\n{found}\n</div>')
    notes = [*table.notes, table.machine_line()]
    paragraphs = "\n".join(f"<p>{html.escape(note)}</p>" for note in notes)
    parts.append(f'<div class="notes">\n{paragraphs}\n</div>')
    count = f"{len(names)} model" + ("s" if len(names) > 1 else "")
    sub = f"{count}: what each is worth, and what it costs."
    return _PAGE.format(title="Models compared", style=_STYLE, sub=sub, body="\n".join(parts))


def _table(table: Any, front: set[str]) -> str:
    cells = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in table.head)
    lines = []
    for row in table.rows:
        name, *numbers = (html.escape(cell) for cell in row.cells(table.measures))
        tags = ""
        if len(table.rows) > 1 and row.model == table.original:
            tags += '<span class="tag original">original</span>'
        if row.model in front:
            title = "No other model is better and as fast, or as good and faster"
            tags += f'<span class="tag front" title="{title}">Pareto front</span>'
        name += f"<div>{tags}</div>" if tags else ""
        columns = "".join(f"<td>{cell}</td>" for cell in (name, *numbers))
        lines.append(f"<tr>{columns}</tr>")
    rows = "\n".join(lines)
    return (
        f"<section>\n<table>\n<thead><tr>{cells}</tr></thead>\n"
        f"<tbody>\n{rows}\n</tbody>\n</table>\n</section>"
    )


def _figure(title: str, path: pathlib.Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    alt = html.escape(title, quote=True)
    return f'<section><img alt="{alt}" src="data:image/png;base64,{data}"></section>'
