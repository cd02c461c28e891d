"""What setup.cfg and the pages say agrees with what is there."""

from __future__ import annotations

import configparser
import re
from pathlib import Path

import pytest

import tfkd

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def setup():
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def requirements(text: str) -> list[str]:
    """The lower-case names of the packages in a list of requirements."""
    names = [re.match(r"[\w.-]+", line) for line in text.strip().splitlines()]
    return [name.group().lower() for name in names]


def test_version_is_read_from_the_package(setup):
    assert setup["metadata"]["version"] == "attr: tfkd.__version__"
    # setuptools reads it without importing: it must be a plain assignment.
    source = (ROOT / "tfkd" / "__init__.py").read_text(encoding="utf-8")
    assert re.findall(r'^__version__ = "(.+)"$', source, re.M) == [tfkd.__version__]
    assert re.fullmatch(r"\d+\.\d+\.\d+", tfkd.__version__)


def test_every_package_is_named_once(setup):
    required = requirements(setup["options"]["install_requires"])
    names = list(required)
    for text in setup["options.extras_require"].values():
        names += [name for name in requirements(text) if name != "tfkd"]
    assert len(names) == len(set(names)), sorted(n for n in names if names.count(n) > 1)
    assert {"tensorflow", "tf_keras", "tensorflow-model-optimization"} <= set(required)


def test_extras_take_in_extras_that_exist(setup):
    extras = setup["options.extras_require"]
    assert {"litert", "tensorrt", "detection", "demo", "test", "dev"} <= set(extras)
    for text in extras.values():
        for group in re.findall(r"^tfkd\[(.+)\]$", text, re.M):
            assert set(group.split(",")) <= set(extras)


def test_optional_packages_in_errors_name_an_extra_that_exists(setup):
    extras = set(setup["options.extras_require"])
    for path in (ROOT / "tfkd").rglob("*.py"):
        named = re.findall(r"tfkd\[([\w,]+)\]", path.read_text(encoding="utf-8"))
        assert {extra for group in named for extra in group.split(",")} <= extras, path.name


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "Makefile"])
def test_scripts_that_a_page_names_exist(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for script in set(re.findall(r"\b(?:examples|benchmarks|tests)/[\w/]+\.py\b", text)):
        assert (ROOT / script).is_file(), f"{page} names {script}"


def test_licence_is_apache_2(setup):
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in text and "Version 2.0, January 2004" in text
    assert setup["metadata"]["license"] == "Apache-2.0"
