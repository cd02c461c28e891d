"""`tfkd run`: repeats what a recipe describes. Also what all verbs that make a run share."""

from __future__ import annotations

import argparse
import contextlib
import pathlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from tfkd.cli import exit_codes, quiet
from tfkd.cli.exit_codes import UsageError
from tfkd.cli.parsing import Parser
from tfkd.cli.terminal import Terminal
from tfkd.recipes.recipe import Recipe
from tfkd.recipes.run_folder import NAME, OutputError

if TYPE_CHECKING:
    from tfkd.recipes.outcome import Outcome


def flags(parser: Parser) -> None:
    """Defines the flags."""
    parser.add_argument("recipe", metavar="RECIPE", help="a .json file (or .yaml, with PyYAML)")
    run_flags(parser)
    parser.examples(
        """tfkd run recipe.json --output=small
        tfkd run examples/recipes/mobilenet_phone.json --dry_run
        tfkd run small/recipe.json --output=again   # the same files, bit for bit"""
    )


def run(args: argparse.Namespace, terminal: Terminal) -> int:
    """Runs a recipe; returns the exit code."""
    try:
        recipe = Recipe.load(args.recipe)
    except (FileNotFoundError, ValueError) as error:
        raise UsageError(str(error)) from error
    return start(recipe, args, terminal, pathlib.Path(args.recipe).stem)


def run_flags(parser: Parser) -> None:
    """Defines the flags of every verb that starts a run."""
    group = parser.add_argument_group("the run")
    group.add_argument("--output", metavar="DIR", help="a new folder; default NAME_tfkd")
    group.add_argument(
        "--dry_run",
        action="store_true",
        help="print the plan with its estimated time, train nothing",
    )


def start(recipe: Recipe, args: argparse.Namespace, terminal: Terminal, name: str) -> int:
    """Runs a recipe in a new folder, or prints its plan; returns the exit code.

    Args:
        recipe: the recipe.
        args: with `output`, `dry_run` and `command`.
        terminal: for messages.
        name: what the default folder is named after.
    """
    if args.dry_run:
        quiet.import_tensorflow()
        from tfkd.recipes.dry_run import plan

        terminal.print(plan(recipe, terminal))
        return exit_codes.DONE
    output = pathlib.Path(args.output or f"{name}_tfkd")

    def go() -> Outcome:
        from tfkd.recipes import engine

        return engine.run(recipe, output, voice=terminal, command=args.command)

    return finish(go, output, terminal)


def finish(go: Callable[[], Any], output: pathlib.Path, terminal: Terminal) -> int:
    """Runs or resumes, and prints the outcome; returns the exit code."""
    quiet.import_tensorflow()
    try:
        with _ended_as_by_ctrl_c():
            outcome = go()
    except KeyboardInterrupt:
        if (output / NAME).is_file():
            terminal.resume_hint = f"tfkd resume {output}"
        raise
    except OutputError as error:
        raise UsageError(str(error)) from error
    terminal.print(outcome)
    return exit_codes.DONE if outcome.accepted else exit_codes.NOT_MET


@contextlib.contextmanager
def _ended_as_by_ctrl_c() -> Iterator[None]:
    """Makes SIGTERM, which batch systems and containers send, end a run as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Only the main thread may set handlers.
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
