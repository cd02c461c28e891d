"""README, docs, examples and benchmarks call tfkd by names and arguments that it has.

That they run from end to end is for the slow tests: test_docs.py, examples/.
"""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import pytest

import tfkd

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def python_of(page):
    text = page.read_text(encoding="utf-8")
    return "\n".join(re.findall(r"^```python\n(.*?)^```", text, flags=re.S | re.M))


SOURCES = {
    **{page.relative_to(ROOT).as_posix(): python_of(page) for page in PAGES},
    **{
        path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
        for folder in ("examples", "benchmarks")
        for path in sorted((ROOT / folder).glob("*.py"))
    },
}


def imported(tree):
    """The objects of tfkd that names in a source stand for."""
    found = {"tfkd": tfkd}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "tfkd":
            module = __import__(node.module, fromlist=["x"])
            for alias in node.names:
                found[alias.asname or alias.name] = getattr(module, alias.name)
    return found


def resolve(node, names):
    """The object that `a.b.c` stands for; None if `a` is no name of tfkd."""
    if isinstance(node, ast.Name):
        return names.get(node.id)
    if isinstance(node, ast.Attribute):
        holder = resolve(node.value, names)
        return None if holder is None else getattr(holder, node.attr)
    return None


def assert_accepts(function, call):
    """Raises TypeError if a function has no such arguments."""
    unpacked = any(isinstance(a, ast.Starred) for a in call.args)
    unpacked |= any(k.arg is None for k in call.keywords)
    given = [None for a in call.args if not isinstance(a, ast.Starred)]
    named = {k.arg: None for k in call.keywords if k.arg}
    signature = inspect.signature(function)
    (signature.bind_partial if unpacked else signature.bind)(*given, **named)


@pytest.mark.parametrize("name", SOURCES)
def test_names_and_arguments_exist(name):
    tree, wrong = ast.parse(SOURCES[name]), []
    names = imported(tree)
    for node in ast.walk(tree):
        try:
            if isinstance(node, ast.Call) and callable(function := resolve(node.func, names)):
                assert_accepts(function, node)
            elif isinstance(node, ast.Attribute):
                resolve(node, names)
        except (AttributeError, TypeError) as error:
            wrong.append(f"line {node.lineno}: {ast.unparse(node)[:70]}: {error}")
    assert not wrong, "\n".join(wrong)
