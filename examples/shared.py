"""What the examples share: command-line flags, and lines that say how far a script is.

A script defines its flags and parses them before it imports TensorFlow, so that `--help`
answers at once. One that builds on another defines its own flags and then imports that one,
which defines the rest and parses them all.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any


class Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows a script's docstring as it is, and the default of each flag that has one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        plain = action.default is None or action.default is False
        return action.help if plain else super()._get_help_string(action)


PARSER = argparse.ArgumentParser(formatter_class=Help, allow_abbrev=False)
DEFAULTS: dict[str, Any] = {}  # of flags by name, in place of their own
FLAGS = argparse.Namespace()


def flag(name: str, default: Any = None, help: str = "", **options: Any) -> None:
    """Defines `--name`, of the type of its default: a switch if that is False."""
    if default is False:
        options["action"] = "store_true"
    elif default is not None:
        options.setdefault("type", type(default))
    PARSER.add_argument(f"--{name}", default=default, help=help, **options)


def parse() -> None:
    """Parses the command line into `FLAGS`."""
    PARSER.description = sys.modules["__main__"].__doc__
    PARSER.set_defaults(**DEFAULTS)
    PARSER.parse_args(namespace=FLAGS)


def positive(*names: str) -> None:
    """Raises ValueError unless these flags are integers of at least 1, or not given."""
    from tfkd import checks

    for name in names:
        if (value := getattr(FLAGS, name.replace("-", "_"))) is not None:
            checks.positive_int(name, value)


class Say:
    """Prints lines with the time since the start."""

    def __init__(self):
        self.began = time.monotonic()

    def __call__(self, text: str) -> None:
        print(f"[{time.monotonic() - self.began:5.1f} s] {text}", flush=True)
