"""HTML template and style sheet of result pages, which are self-contained files."""

from __future__ import annotations

import base64
import html
import pathlib
import re
from collections.abc import Mapping, Sequence

STYLE = """
.tfkd { --text: #1d2430; --quiet: #5b6472; --line: #dde1e7; --card: #fff; --page: #f4f5f7;
  --grey: #e6e9ee; --green: #dcefe8; --on-green: #00614a; --red: #fbe3da; --on-red: #8a2b00;
  --amber: #fbeecb; --on-amber: #6b4a00; --link: #005a94; color-scheme: light dark;
  background: var(--page); color: var(--text); line-height: 1.5; padding: 16px;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
@media screen and (prefers-color-scheme: dark) {
  .tfkd { --text: #e4e7ec; --quiet: #a3abb8; --line: #3a414d; --card: #1d2129; --page: #14171c;
    --grey: #343b47; --green: #0f4637; --on-green: #a9e5d0; --red: #5a2410; --on-red: #ffc9b0;
    --amber: #4d3a08; --on-amber: #ffe29a; --link: #7cc0f2; }
  .tfkd .figures img { filter: invert(0.89) hue-rotate(180deg); } }
.tfkd * { box-sizing: border-box; }
.tfkd > * { max-width: 1120px; margin: 0 auto 20px; }
.tfkd h1 { font-size: 1.6rem; margin-bottom: 4px; }
.tfkd h2 { font-size: 1.05rem; margin: 0 0 12px; }
.tfkd p { margin-block: 8px; white-space: pre-line; overflow-wrap: anywhere; }
.tfkd .sub, .tfkd .notes { color: var(--quiet); }
.tfkd .notes { font-size: 0.88rem; }
.tfkd section { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 20px 24px; overflow-x: auto; }
.tfkd table { border-collapse: collapse; width: 100%; font-size: 0.92rem;
  font-variant-numeric: tabular-nums; }
.tfkd th, .tfkd td { text-align: right; padding: 7px 12px; white-space: nowrap;
  border-bottom: 1px solid var(--line); }
.tfkd th { font-weight: 600; color: var(--quiet); border-bottom-width: 2px; }
.tfkd .left { text-align: left; white-space: normal; overflow-wrap: anywhere; min-width: 8.5em; }
.tfkd td:first-child { font-weight: 600; }
.tfkd th:first-child, .tfkd td:first-child { padding-left: 0; }
.tfkd tfoot td { border-top: 2px solid var(--line); }
.tfkd tbody:last-child tr:last-child td { border-bottom: 0; }
.tfkd .tag { display: inline-block; margin-right: 6px; padding: 0 8px; border-radius: 999px;
  font-size: 0.72rem; font-weight: 600; white-space: nowrap; background: var(--grey); }
.tfkd .tag[title] { background: var(--green); color: var(--on-green); }
.tfkd ul { margin: 0; padding-left: 20px; }
.tfkd .figures { display: grid; gap: 20px;
  grid-template-columns: repeat(auto-fit, minmax(min(420px, 100%), 1fr)); }
.tfkd .figures img { width: 100%; height: auto; display: block; }
.tfkd .part { margin-top: 36px; }
.tfkd .part > h2 { font-size: 1.25rem; margin-bottom: 4px; }
.tfkd .part > section, .tfkd .part > .figures, .tfkd .part > details { margin-top: 14px; }
.tfkd .headline { --paper: var(--card); --ink: var(--line); border-left-width: 8px;
  font-size: 1.05rem; background: var(--paper); border-color: var(--ink); }
.tfkd .headline strong { color: var(--ink); font-size: 1.5rem; margin-right: 10px; }
.tfkd .accepted { --paper: var(--green); --ink: var(--on-green); }
.tfkd .regressed { --paper: var(--red); --ink: var(--on-red); }
.tfkd .infeasible { --paper: var(--amber); --ink: var(--on-amber); }
.tfkd a { color: var(--link); overflow-wrap: anywhere; }
.tfkd nav a { display: inline-block; margin-right: 16px; line-height: 1.9; }
.tfkd pre { margin: 0; font-size: 0.85rem; white-space: pre-wrap; overflow-wrap: anywhere; }
.tfkd summary { cursor: pointer; color: var(--link); margin-bottom: 10px; }
.tfkd .gallery { display: grid; gap: 18px 14px;
  grid-template-columns: repeat(auto-fill, minmax(138px, 1fr)); }
.tfkd .gallery.large { grid-template-columns: repeat(auto-fill, minmax(min(420px, 100%), 1fr)); }
.tfkd .gallery figure { margin: 0; }
.tfkd .gallery img { width: 96px; height: 96px; object-fit: contain; display: block;
  image-rendering: pixelated; background: var(--grey); border-radius: 4px; }
.tfkd .gallery.large img { width: 100%; height: auto; image-rendering: auto; }
.tfkd .gallery figcaption { font-size: 0.8rem; line-height: 1.35; margin-top: 5px;
  overflow-wrap: anywhere; }
.tfkd .part .figures { grid-template-columns: repeat(auto-fill, minmax(min(420px, 100%), 1fr)); }
@media print {
  .tfkd { --page: #fff; padding: 0; font-size: 10pt; }
  .tfkd nav { display: none; }
  .tfkd section { break-inside: avoid; overflow: visible; padding: 8px 12px; }
  .tfkd .part .figures { grid-template-columns: 1fr 1fr; gap: 10px; }
  .tfkd section:has(table), .tfkd section:has(.gallery) { break-inside: auto; }
  .tfkd tr, .tfkd figure { break-inside: avoid; }
  .tfkd h2, .tfkd .sub { break-after: avoid; }
  .tfkd table { font-size: 8.5pt; }
  .tfkd th, .tfkd td { padding: 4px 6px; white-space: normal; } }
@media (max-width: 640px) {
  .tfkd { padding: 10px; }
  .tfkd section { padding: 14px 16px; }
  .tfkd .part .figures section { padding: 4px; }
  .tfkd th, .tfkd td { padding-inline: 6px; }
  .tfkd .headed thead { display: none; }
  .tfkd .headed tr { display: block; padding-block: 8px; border-bottom: 1px solid var(--line); }
  .tfkd .headed tr:last-child { border-bottom: 0; }
  .tfkd .headed td { display: flex; justify-content: space-between; gap: 16px; padding: 2px 0;
    border: 0; text-align: right; white-space: normal; overflow-wrap: anywhere; }
  .tfkd .headed td::before { flex: none; max-width: 60%; color: var(--quiet);
    font-weight: 400; text-align: left; }
  .tfkd .headed td:first-child { display: block; text-align: left; } }
"""
# The heads of a table's columns are custom properties of its section, see `head_style`.
_MOST_COLUMNS = 30
_RULES = (
    f"  .tfkd .headed td:nth-child({i})::before {{ content: var(--head-{i}); }}\n"
    for i in range(2, _MOST_COLUMNS + 1)
)
STYLE += "@media (max-width: 640px) {\n" + "".join(_RULES) + "}\n"

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>body {{ margin: 0; }} .tfkd {{ min-height: 100vh; }}{style}</style>
</head>
<body>
<main class="tfkd">
{body}
</main>
</body>
</html>
"""


def head_style(names: Sequence[str]) -> str:
    """The heads of columns as CSS, by which a narrow screen names the values of a row."""
    quoted = (re.sub(r'(["\\])', r"\\\1", name) for name in names)
    return "; ".join(f'--head-{i}: "{name}"' for i, name in enumerate(quoted, start=1) if i > 1)


def element(tag: str, inside: str, attributes: Mapping[str, str] | None = None) -> str:
    """An HTML element; `inside` must be escaped already, empty attributes are omitted."""
    shown = [f' {k}="{html.escape(v)}"' for k, v in (attributes or {}).items() if v]
    return f"<{tag}{''.join(shown)}>{inside}</{tag}>\n"


def figure(title: str, path: pathlib.Path) -> str:
    """A section with a PNG embedded as a data URL."""
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    image = f'<img alt="{html.escape(title)}" src="data:image/png;base64,{data}">'
    return element("section", image)
