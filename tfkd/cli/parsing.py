"""The parser of the command line: absl's argparse flags, one subcommand per verb."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import NamedTuple, NoReturn

from absl.flags import argparse_flags

import tfkd
from tfkd import checks
from tfkd.cli import exit_codes


class Verb(NamedTuple):
    """A subcommand: its module has `flags(parser)` and `run(args, terminal) -> int`."""

    name: str
    module: str
    help: str

    def load(self) -> ModuleType:
        """Imports the module."""
        return importlib.import_module(self.module)


class Parser(argparse_flags.ArgumentParser):
    """absl's parser of flags, whose errors name the flags that are near to a wrong one.

    Flags are defined with underscores, `--max_drop`; a user may write hyphens as well.
    """

    def __init__(self, **options):
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(allow_abbrev=False, **options)
        for action in self._actions:
            if "--helpfull" in action.option_strings:  # absl's, which shows the same here
                action.help = argparse.SUPPRESS

    def examples(self, text: str) -> None:
        """Sets the examples at the end of the help."""
        lines = "\n".join(f"  {line.strip()}" for line in text.strip().splitlines())
        self.epilog = f"examples:\n{lines}"

    def error(self, message: str) -> NoReturn:
        """Ends with `USAGE`."""
        print(f"{self.prog}: {message}\nSee {self.prog} --help.", file=sys.stderr)
        raise SystemExit(exit_codes.USAGE)


def parse(argv: Sequence[str], verbs: Sequence[Verb]) -> tuple[argparse.Namespace, ModuleType]:
    """Parses a command line; imports the module of its verb and no other.

    Returns:
        The values of the flags, and the module.

    Raises:
        SystemExit: after help or version were printed, or with `USAGE`.
    """
    argv = [_with_underscores(word) for word in argv]
    asked = next((word for word in argv if not word.startswith("-")), None)
    parser = Parser(prog="tfkd", description=_DESCRIPTION, epilog=_epilog())
    parser.add_argument("--version", action="version", version=f"tfkd {tfkd.__version__}")
    places = parser.add_subparsers(title="verbs", metavar="VERB", parser_class=Parser)
    chosen: Parser | None = None
    module: ModuleType | None = None
    for verb in verbs:
        place = places.add_parser(
            verb.name,
            help=verb.help,
            description=verb.help,
            inherited_absl_flags=None,
            add_help=verb.name == asked,
        )
        if verb.name == asked:
            chosen, module = place, verb.load()
            module.flags(place)
            _common_flags(place)
    if asked is not None and module is None:
        names = [verb.name for verb in verbs]
        parser.error(f"there is no verb {asked!r}. {checks.near_or_all(asked, names)}")
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        place = chosen or parser
        place.error(_unknown(unknown[0], place))
    if module is None:
        parser.print_help(sys.stderr)
        raise SystemExit(exit_codes.USAGE)
    return args, module


_DESCRIPTION = """Makes a trained Keras model small and fast, and says what it cost.

Each verb has a help of its own, with examples: tfkd VERB --help."""


def _epilog() -> str:
    codes = ", ".join(f"{code} {text}" for code, text in exit_codes.MEANINGS.items())
    return (
        "Results go to standard output; messages, warnings and progress to standard error.\n"
        f"Exit codes: {codes}."
    )


def _common_flags(parser: Parser) -> None:
    group = parser.add_argument_group("flags of every verb")
    group.add_argument("--json", action="store_true", help="print one JSON object")
    group.add_argument(
        "--imports", metavar="MODULE", help="Python module that registers your own layers"
    )
    group.add_argument("--quiet", action="store_true", help="no messages and no progress")
    group.add_argument("--debug", action="store_true", help="show the traceback of an error")


def _with_underscores(word: str) -> str:
    """`--max-drop=1` → `--max_drop=1`; the value stays."""
    if not word.startswith("--") or word == "--":
        return word
    name, equals, value = word[2:].partition("=")
    return f"--{name.replace('-', '_')}{equals}{value}"


def _unknown(word: str, parser: Parser) -> str:
    if not word.startswith("-"):
        return f"unexpected argument {word!r}."
    flag = word.partition("=")[0]
    known = [name for name in parser._option_string_actions if name.startswith("--")]
    shown = [name for name in known if name not in ("--helpshort", "--helpfull", "--undefok")]
    return f"there is no flag {flag}. {checks.near_or_all(flag, shown)}"
