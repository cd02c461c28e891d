"""What the README names exists; figures of README and docs are in the sections they link to."""

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
RECORDS = {path.stem for path in (ROOT / "benchmarks" / "records").glob("*.json")}
BLOCK = re.compile(r"<!-- record: ([\w-]+).*?-->\n(.*?)<!-- end record -->", re.S)
LINK = re.compile(r"\]\([^)\s]*RESULTS\.md#([^)\s]+)\)")
UNIT = r" ?(?:%|points?|times|ms|µs|s|seconds|minutes|KiB|MiB|MB)(?![\w%])"
DEMO = "<!-- demo table: begin -->.*?<!-- demo table: end -->"
# Settings and limits, which no script measures.
NOT_MEASURED = {
    "under 5 minutes": "a bound of examples/detection.py, which took 160 s",
    "under 4 minutes": "a bound of make demo",
    "More than 1 %": "the share of positions at which an export warns",
    "90 to 98 % of the budget": "where a search by measured time ends",
    "1.0 unless it is null": "the default of a gate",
    "75 % of the MACs": "from where on recipes let filters decay",
}


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.S | re.M)


def claims(text):
    """(spreads, numbers): all "a ± b", and each number with a decimal or a unit of results."""
    code = rf"{DEMO}|^```.*?^```|`[^`\n]*`|<!--.*?-->|\]\([^)\s]*\)"  # and links
    text = re.sub(code, "", text, flags=re.S | re.M)
    versions = r"(?:Python|[Kk]eras|[Tt]ensor[Ff]low|TensorRT|Apache)[ -]\d[\d.]*(?: to \d[\d.]*)?"
    text = re.sub(versions, "", text)
    for phrase in NOT_MEASURED:
        text = text.replace(phrase, "")
    spreads = re.findall(rf"{NUMBER} ± {NUMBER}", text)
    text = re.sub(rf"{NUMBER} ± {NUMBER}", "", text)
    with_unit = rf"{NUMBER}(?=(?: (?:to|→|and|against) {NUMBER})?{UNIT})"
    found = [match[1] for match in re.finditer(with_unit, text)]
    return spreads, found + [n for n in re.findall(NUMBER, text) if "." in n and n not in found]


def rounds_to(value, shown):
    """Whether a value of RESULTS.md may be shown with these digits."""
    digits = len(shown.partition(".")[2])
    return abs(float(value.replace(",", "")) - float(shown.replace(",", ""))) <= (
        0.5 * 10.0**-digits + 1e-9
    )


def sections(page):
    """Anchor → text of each section, with that of the smaller ones in it; not of the title."""
    heads = list(re.finditer(r"^(##+) (.+)$", page, flags=re.M))
    found = {}
    for i, head in enumerate(heads):
        later = (other.start() for other in heads[i + 1 :] if len(other[1]) <= len(head[1]))
        anchor = re.sub(r"[^\w\- ]", "", head[2].lower()).replace(" ", "-")
        found[anchor] = page[head.start() : next(later, len(page))]
    return found


def linked(text):
    """(section, piece) of a page: the link to RESULTS.md behind a figure says where it stands.

    In a paragraph, an item of a list or a row of a table that is the next link; what stands
    behind the last one belongs to that. None where there is none.
    """
    text = re.sub(rf"{DEMO}|^```.*?^```", "", text, flags=re.S | re.M)
    for part in re.split(r"\n\s*\n|\n(?=\||[-*] |\d+\. )", text):
        begin, name = 0, None
        for link in LINK.finditer(part):
            name = link[1]
            yield name, part[begin : link.end()]
            begin = link.end()
        yield name, part[begin:]


def unbacked(text, results, records):
    """The figures of a page that the sections of RESULTS.md do not hold which it links to.

    A spread has to stand in a record; another figure in a section that has one, whose text
    may round it or work it out.
    """
    wrong, held = [], sections(results)
    for name, piece in linked(text):
        spreads, numbers = claims(piece)
        section = held.get(name, "")
        made = "\n".join(block for record, block in BLOCK.findall(section) if record in records)
        pairs = set(re.findall(rf"{NUMBER} ± {NUMBER}", made))
        known = set(re.findall(NUMBER, section)) if made else ()
        missing = [
            f"{a} ± {b}"
            for a, b in spreads
            if not any(rounds_to(x, a) and rounds_to(y, b) for x, y in pairs)
        ] + [number for number in numbers if number not in known]
        where = "no link to RESULTS.md#section" if name is None else f"not in #{name}"
        where += " or made without a record" * (name in held and not made)
        wrong += [f"{figure}: {where}" for figure in missing]
    return wrong


def test_figures_are_told_from_settings_and_versions():
    text = "Keras 3.15 at T = 4, 300 images: 1.4 to 10 times, 936 and 950 MiB, −71.43 ± 0.75, "
    spreads, numbers = claims(text + "97.0 → 96.5 %, (66.6). `x = 7.7`\n```\n8.8 %\n```\n")
    assert spreads == [("71.43", "0.75")]
    assert set(numbers) == {"1.4", "10", "936", "950", "97.0", "96.5", "66.6"}
    assert rounds_to("71.43", "71.4") and not rounds_to("71.43", "71.5")


UNLINKED = ": no link to RESULTS.md#section"
MADE_UP = """# Results

## Step

<!-- record: step -->
| tfkd | Keras |
|---:|---:|
| 197 | 254 |
<!-- end record -->

0.78 times as long as Keras, ± 0.02.

### With a cache

<!-- record: cache table=2 -->
31.5 ms.
<!-- end record -->

## Digits

<!-- record: digits -->
71.43 ± 0.75 %, and 936 KiB.
<!-- end record -->

Before: 70.22 ± 0.75 %.

## Older

<!-- record: older -->
66.6 %.
<!-- end record -->
"""


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("197 ms ([step](RESULTS.md#step)).", []),
        ("It is 197 ms.", [f"197{UNLINKED}"]),
        ("197 ms, see [all](RESULTS.md).", [f"197{UNLINKED}"]),
        ("197 ms ([all](RESULTS.md#results)).", ["197: not in #results"]),
        ("936 ms ([step](RESULTS.md#step)).", ["936: not in #step"]),
        ("[It](../b/RESULTS.md#digits) gains 71.4 ± 0.8 %.", []),
        ("[It](RESULTS.md#digits) gains 71.4 ± 0.5 %.", ["71.4 ± 0.5: not in #digits"]),
        # By hand in a section that has a record; spreads in the record alone.
        ("0.78 times ([step](RESULTS.md#step))", []),
        ("[It](RESULTS.md#digits) gains 70.22 ± 0.75 %.", ["70.22 ± 0.75: not in #digits"]),
        ("66.6 % ([o](RESULTS.md#older))", ["66.6: not in #older or made without a record"]),
        # Of a smaller section, alone and within the larger one.
        ("31.5 ms: [a](RESULTS.md#with-a-cache), 31.5 [b](RESULTS.md#step)", []),
        ("197 ms ([cache](RESULTS.md#with-a-cache)).", ["197: not in #with-a-cache"]),
        # The next link counts, not one before it, nor one of another item or row.
        ("[A](RESULTS.md#digits) in 254 ms: [b](RESULTS.md#step).", []),
        ("254 ms: [a](RESULTS.md#digits), [b](RESULTS.md#step)", ["254: not in #digits"]),
        ("- 197 ms\n- [b](RESULTS.md#step)", [f"197{UNLINKED}"]),
        ("| 197 ms | x |\n| 254 ms | [b](RESULTS.md#step) |", [f"197{UNLINKED}"]),
        ("`9.9` \n```\n8 %\n```\n<!-- demo table: begin -->\n7 %\n<!-- demo table: end -->", []),
    ],
)  # fmt: skip
def test_a_figure_has_to_stand_in_the_section_that_its_sentence_links_to(text, wrong):
    assert unbacked(text, MADE_UP, {"step", "cache", "digits"}) == wrong


@pytest.mark.parametrize("path", ["README.md", *(f"docs/{p.name}" for p in DOCS)])
def test_every_figure_is_in_the_section_that_its_sentence_links_to(path):
    assert unbacked((ROOT / path).read_text(encoding="utf-8"), RESULTS, RECORDS) == []


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
