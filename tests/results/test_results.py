"""Results as text, Markdown, pages, values for JSON, and files."""

import ast
import dataclasses
import html
import html.parser
import importlib
import json
import math
import pathlib
import pkgutil
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tfkd
from tfkd.results import Grid, Lines, Plot, Result, cell, plain, si, size_text

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(
    ["a|b", "\\|", "\\", "<b>x</b>", '" & <', "two\nlines", "", "  ", "| | |"]
)
NUMBERS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**9), 10**9),
    st.floats(),
    st.floats(width=32).map(np.float32),
    st.integers(0, 100).map(np.int64),
)
VALUES = TEXTS | NUMBERS


@dataclasses.dataclass(frozen=True)
class Shown(Result):
    """Anything: a table, facts, a list, notes."""

    head: tuple
    rows: tuple
    facts: dict
    said: tuple
    totals: int = 0

    def parts(self):
        yield Grid(self.head, self.rows, totals=self.totals)
        yield Grid((), list(self.facts.items()), left=2)
        yield Lines(self.said, "A <title>")
        yield Lines(self.said, printed=False)
        yield "The end."


@st.composite
def results(draw):
    head = tuple(draw(st.lists(TEXTS, min_size=1, max_size=4)))
    row = st.tuples(TEXTS, *[VALUES] * (len(head) - 1))
    rows = tuple(draw(st.lists(row, max_size=4)))
    facts = draw(st.dictionaries(TEXTS, VALUES, max_size=3))
    said = tuple(draw(st.lists(TEXTS, max_size=2)))
    return Shown(head, rows, facts, said, draw(st.integers(0, len(rows))))


def columns(line):
    """How many cells a row of a table has, as GitHub's Markdown reads it."""
    count, escaped = 0, False
    for sign in line:
        count += sign == "|" and not escaped
        escaped = sign == "\\" and not escaped
    return count - 1


class Page(html.parser.HTMLParser):
    """Tags that are open, all tags, and the texts of cells."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.cells = [], set(), []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag not in ("meta", "img"):
            self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.cells[-1] += data


def unchanged(value):
    """The value as JSON gives it back, worked out apart from the code."""
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, np.integer):
        return int(value)
    if isinstance(value, dict):
        return {key: unchanged(item) for key, item in value.items()}
    return [unchanged(item) for item in value] if isinstance(value, tuple) else value


@settings(deadline=None, max_examples=150)
@given(results())
def test_any_result_has_all_forms(shown):
    assert str(shown) == shown.text() and shown.text().endswith("The end.")
    found = shown.to_dict()
    expected = {"head": shown.head, "rows": shown.rows, "facts": shown.facts, "said": shown.said}
    assert found == unchanged(expected) | {"totals": shown.totals}
    assert json.loads(json.dumps(found, allow_nan=False)) == found


@settings(deadline=None, max_examples=150)
@given(results())
def test_every_row_of_markdown_has_as_many_cells(shown):
    grid = Grid(shown.head, shown.rows, totals=shown.totals)
    lines = grid.markdown().split("\n")
    assert len(lines) == 2 + len(shown.rows)
    assert {columns(line) for line in lines} == {len(shown.head)}


@settings(deadline=None, max_examples=150)
@given(results())
def test_pages_are_whole_and_show_the_cells_as_they_are(shown):
    for text in (shown.html(), shown._repr_html_()):
        page = Page(text)
        assert page.open == [] and not {"b", "script", "link", "img"} & page.tags
        rows = [shown.head, *shown.rows, *shown.facts.items()]
        wanted = [cell(value) for row in rows for value in row]
        # Browsers do not show NUL, and Python's parser does not keep it either.
        assert [t.rstrip("\n").replace("\0", "\ufffd") for t in page.cells] == [
            t.replace("\0", "\ufffd") for t in wanted
        ]


@settings(deadline=None, max_examples=25)
@given(results())
def test_what_is_saved_is_what_is_known(tmp_path_factory, shown):
    folder = tmp_path_factory.mktemp("saved") / "new"
    assert shown.save(folder) == folder
    assert {path.name for path in folder.iterdir()} == {"shown.md", "shown.json", "shown.html"}
    assert json.loads((folder / "shown.json").read_text("utf-8")) == shown.to_dict()
    assert (folder / "shown.md").read_bytes().decode("utf-8") == shown.markdown()
    assert (folder / "shown.html").read_bytes().decode("utf-8") == shown.html()


BY_HAND = Shown(
    ("layer", "MACs", "share"),
    (("conv<1>", 1_296, 0.25), ("a|b", None, math.nan), ("total", np.int64(1_296), "all")),
    {"file": pathlib.PurePosixPath("m.tflite"), "size": "8.3 KiB"},
    ("first", "second"),
    totals=1,
)


def test_the_text_by_hand():
    assert BY_HAND.text().split("\n") == [
        "layer     MACs  share",
        "-------  -----  -----",
        "conv<1>  1,296   0.25",
        "a|b          –      –",
        "-------  -----  -----",
        "total    1,296    all",
        "",
        "file  m.tflite",
        "size  8.3 KiB",
        "",
        "first",
        "second",
        "",
        "The end.",
    ]


def test_the_markdown_by_hand():
    assert BY_HAND.markdown().split("\n") == [
        "| layer | MACs | share |",
        "|---|---:|---:|",
        "| conv\\<1> | 1,296 | 0.25 |",
        "| a\\|b | – | – |",
        "| total | 1,296 | all |",
        "",
        "|  |  |",
        "|---|---|",
        "| file | m.tflite |",
        "| size | 8.3 KiB |",
        "",
        "- first",
        "- second",
        "",
        "first",
        "",
        "second",
        "",
        "The end.",
        "",
    ]


def test_the_page_by_hand():
    text = BY_HAND.html()
    assert "<title>Shown</title>" in text and "width=device-width" in text
    assert "prefers-color-scheme: dark" in text and "://" not in text
    assert text.count("<table>") == 2 and text.count("<tfoot>") == 1
    assert '<td class="left">conv&lt;1&gt;</td>' in text and "<td>1,296</td>" in text
    assert "<h2>A &lt;title&gt;</h2>" in text and "<p>The end.</p>" in text
    assert BY_HAND._repr_html_().startswith('<div class="tfkd">')


def test_on_narrow_screens_values_have_the_names_of_their_columns():
    grid = Grid(("model", 'a "b" \\', "c"), [("x", 1, 2)])
    style = html.unescape(re.search('<section class="headed" style="(.*?)">', grid.html())[1])
    assert style == '--head-2: "a \\"b\\" \\\\"; --head-3: "c"'
    narrow = BY_HAND.html().split("@media (max-width: 640px)")[-1]
    assert "td:nth-child(2)::before { content: var(--head-2); }" in narrow


def test_tags_stand_with_the_name_on_pages_alone():
    grid = Grid(("model",), [("a",), ("b",)], tags={1: [("front", 'why "so"'), ("plain", "")]})
    assert '<span class="tag" title="why &quot;so&quot;">front</span>' in grid.html()
    assert '<span class="tag">plain</span>' in grid.html()
    assert "front" not in grid.text() + grid.markdown()


def test_long_names_are_folded_and_rules_stay_with_their_rows():
    name = "a student of eight layers which learns from a teacher " * 2
    grid = Grid(("model", "x" * 60), [(name, 1), ("total", 2)], totals=1)
    lines = grid.text().split("\n")
    assert max(map(len, lines)) <= 100 and lines[0].startswith("model ")
    assert lines[-2].startswith("---") and lines[-1].startswith("total ")
    assert " ".join(line[:38].strip() for line in lines[2:-2]) == name.strip()


def test_names_are_not_broken_inside_of_a_word():
    heads = ("model", *(letter * 12 for letter in "abcdefg"))

    def names(name):
        lines = Grid(heads, [(name, *range(7))]).text().split("\n")[2:]
        return [line.split("  ")[0].rstrip() for line in lines]

    assert names("0:float32.tflite") == ["0:float32.", "tflite"]
    assert names("distilled, int8 of 0.25") == ["distilled,", "int8 of 0.25"]
    assert names("stage1_block1_1_conv") == ["stage1_", "block1_1_", "conv"]
    assert names("an internationalization") == ["an", "internationalization"]
    assert names("a" * 120) == ["a" * 50, "a" * 50, "a" * 20]


@pytest.mark.parametrize(
    ("value", "form", "text"),
    [
        (1234, "", "1,234"), (True, "", "True"), (1234, "d", "1234"), (0.12345, ".3f", "0.123"),
        (np.float32("nan"), ".3f", "–"), (None, si, "–"), (41_300_000, si, "41.3 M"),
        (8_504, size_text, "8.3 KiB"), ("given", ".3f", "given"), ("a\r\nb\u2028c", "", "a b c"),
    ],
)  # fmt: skip
def test_cells_by_hand(value, form, text):
    assert cell(value, form) == text


@dataclasses.dataclass(frozen=True)
class Inner:
    """A row of a result."""

    path: Any
    weights: Any = dataclasses.field(default=(), repr=False)


def test_values_for_json_by_hand():
    value = {
        3: Inner(pathlib.PurePosixPath("a/b"), np.ones(9)),
        "array": np.array([[1.0, np.nan], [np.inf, 2.0]]),
        "numbers": (np.float32(0.5), np.int8(7), np.bool_(True), -math.inf),
        "function": size_text,
        "type": np.float32,
        "result": BY_HAND,
    }
    assert plain(value) == {
        "3": {"path": "a/b"},
        "array": [[1.0, None], [None, 2.0]],
        "numbers": [0.5, 7, True, None],
        "function": "size_text",
        "type": "float32",
        "result": BY_HAND.to_dict(),
    }


class Drawn(Result, title="A & B", file_name="other"):
    """A result with a picture."""

    def __init__(self):
        self.drawn = 0

    def _draw(self, path):
        self.drawn += 1
        path.write_bytes(b"\x89PNG")

    def plots(self):
        return [Plot("curve", "A <curve>", self._draw)]

    def to_dict(self):
        return {"drawn": self.drawn}


def test_pictures_are_drawn_only_where_they_are_wanted(tmp_path):
    drawn = Drawn()
    assert drawn.text() == "drawn  0" and "img" not in Page(drawn._repr_html_()).tags
    assert "img" not in Page(drawn.html(plots=False)).tags
    drawn.save(tmp_path / "bare", plots=False)
    assert len(list((tmp_path / "bare").iterdir())) == 3 and drawn.drawn == 0
    page = drawn.html()
    assert '<img alt="A &lt;curve&gt;" src="data:image/png;base64,iVBORw==">' in page
    assert "<h1>A &amp; B</h1>" in page
    drawn.save(tmp_path)
    assert (tmp_path / "curve.png").read_bytes() == b"\x89PNG" and drawn.drawn == 2
    assert "base64,iVBORw==" in (tmp_path / "other.html").read_text("utf-8")


def subclasses(kind):
    for found in kind.__subclasses__():
        yield found
        yield from subclasses(found)


def test_no_two_results_of_tfkd_have_the_same_files():
    for module in pkgutil.walk_packages(tfkd.__path__, "tfkd."):
        importlib.import_module(module.name)
    kinds = [kind for kind in subclasses(Result) if kind.__module__.startswith("tfkd.")]
    names = [kind.file_name for kind in kinds]
    assert len(set(names)) == len(names) >= 18
    assert {"table", "latency", "detectors", "detection", "plan", "layer_choice"} <= set(names)


def test_results_are_read_in_one_way():
    """By print and the methods of `Result`: nothing else shows, explains or makes a dict."""
    other = {"show", "explain", "as_dict", "_repr_html_", "markdown"}
    for path in pathlib.Path(tfkd.__file__).parent.rglob("*.py"):
        if path.parent.name != "results":
            tree = ast.parse(path.read_text("utf-8"))
            names = {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}
            assert not names & other, f"{path}: {names & other}"
