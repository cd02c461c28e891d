"""JSON and XML with lines: the same as from Python's own readers, and the lines counted by hand."""

import json
import xml.etree.ElementTree as ET
from xml.parsers import expat

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfkd.data.detection import parsing

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(deadline=None, max_examples=50)
@given(
    content=st.dictionaries(st.sampled_from(["a", "b", "c", "]", '"']), VALUES, max_size=4),
    indent=st.sampled_from([None, 0, 3]),
)
def test_sections_are_what_json_finds(content, indent):
    sections = parsing.json_sections(json.dumps(content, indent=indent), ["a", "c"])
    assert set(sections) == {"a", "c"} & set(content)
    for name, entries in sections.items():
        if isinstance(content[name], list):
            assert [entry.value for entry in entries] == content[name]
        else:
            assert entries is None


@settings(deadline=None, max_examples=50)
@given(content=st.dictionaries(st.sampled_from("ab"), VALUES, max_size=2), data=st.data())
def test_what_json_refuses_is_refused_at_the_same_line(content, data):
    text = json.dumps(content, indent=1)
    at = data.draw(st.integers(0, len(text)))
    new = data.draw(st.sampled_from(["", ",", "]", "}", "{", '"', ":", "x", " ", "[", "\n"]))
    text = text[:at] + new + text[at + 1 :]
    try:
        wanted = json.loads(text)
    except json.JSONDecodeError as error:
        with pytest.raises(json.JSONDecodeError) as caught:
            parsing.json_sections(text, ["a"])
        assert abs(caught.value.lineno - error.lineno) <= 1
        return
    if isinstance(wanted, dict):
        sections = parsing.json_sections(text, ["a"])
        if isinstance(wanted.get("a"), list):
            assert [entry.value for entry in sections["a"]] == wanted["a"]
    else:
        with pytest.raises(json.JSONDecodeError):
            parsing.json_sections(text, ["a"])


def test_lines_of_ids():
    text = """{"a": [
      {"id": 1}, {"x": 2,
        "id": 3},

      {
        "x": [1,
          2], "id"
          : 4}, 5,
      6]}"""
    entries = parsing.json_sections(text, ["a"])["a"]
    assert [entry.line for entry in entries] == [2, 3, 7, 8, 9]


def test_the_last_of_two_sections_of_one_name_counts_as_in_json():
    assert parsing.json_sections('{"a": [1], "a": [2]}', ["a"])["a"][0].value == 2
    assert parsing.json_sections('{"a": [1], "a": 2}', ["a"]) == {"a": None}


def elements(made, wanted):
    assert made.tag == wanted.tag
    assert (
        made.text.strip() == "".join([wanted.text or "", *(c.tail or "" for c in wanted)]).strip()
    )
    assert len(made.children) == len(wanted)
    for one, other in zip(made.children, wanted, strict=True):
        elements(one, other)


def test_xml_is_what_elementtree_finds():
    head = "<?xml version='1.0' encoding='utf-8'?>\n"
    text = (head + "<a>x\n<b>é &lt;</b><!-- <c/> -->y<b\n/></a>").encode()
    made = parsing.xml(text)
    elements(made, ET.fromstring(text))
    assert [made.line, *(child.line for child in made.children)] == [2, 3, 3]
    assert made.find("b").text == "é <"
    assert made.find("c") is None


@pytest.mark.parametrize("text", [b"", b"<a>", b"<a></b>", b"<a/><b/>", b"a", b"\x00"])
def test_what_is_no_xml(text):
    with pytest.raises(expat.ExpatError):
        parsing.xml(text)


@pytest.mark.parametrize(
    ("value", "found"),
    [(7, 7), ("7", 7), (" 7.0 ", 7), (0, None), ("", None), (None, None), (-1, None), ("-3", None),
     (0.5, None), ("NaN", None)],
)  # fmt: skip
def test_lengths(value, found):
    assert parsing.length(value) == found


@pytest.mark.parametrize("value", ["x", "1_0", True, [3], "inf"])
def test_lengths_that_are_no_numbers(value):
    with pytest.raises(ValueError, match="a number of pixels"):
        parsing.length(value)
