"""The commands of the help and of docs/command.md parse, with flags that exist."""

import re
import shlex
from pathlib import Path

import pytest

from tfkd import cli
from tfkd.cli import parsing

PAGE = Path(__file__).resolve().parents[2] / "docs" / "command.md"


def commands(text):
    """The command lines in a text, without `$`; a backslash continues a line."""
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    found = [line.strip().removeprefix("$ ") for line in lines]
    return [line for line in found if line.startswith("tfkd ") and "VERB" not in line]


def parsed(line):
    words = shlex.split(line.partition(" && ")[0], comments=True)[1:]
    if {"--help", "--version"} & set(words):
        return
    parsing.parse(words, cli.VERBS)


def test_commands_of_the_page():
    pattern = r"^```(?:sh|console|text)?\n(.*?)^```"
    blocks = re.findall(pattern, PAGE.read_text("utf-8"), re.S | re.M)
    lines = [line for block in blocks for line in commands(block)]
    assert len(lines) >= 8
    for line in lines:
        # Lines that show what a wrong command answers are no examples to follow.
        if "# wrong" not in line:
            parsed(line)


@pytest.mark.parametrize("verb", cli.VERBS, ids=lambda verb: verb.name)
def test_commands_of_the_help(verb, capsys):
    cli.main([verb.name, "--help"])
    lines = [line for line in commands(capsys.readouterr().out) if f"tfkd {verb.name} " in line]
    assert lines or verb.name == "doctor"
    for line in lines:
        parsed(line)


def test_every_verb_is_on_the_page():
    text = PAGE.read_text("utf-8")
    for verb in cli.VERBS:
        assert f"## `tfkd {verb.name}`" in text, verb.name
