"""`tfkd resume`: goes on with a run that was killed."""

from __future__ import annotations

import argparse
import pathlib

from tfkd.cli.parsing import Parser
from tfkd.cli.run import finish
from tfkd.cli.terminal import Terminal


def flags(parser: Parser) -> None:
    """Defines the flags."""
    parser.add_argument("folder", metavar="DIR", help="the --output of the run")
    parser.examples(
        """tfkd resume small
        tfkd resume small --quiet --json   # for scripts: the outcome alone"""
    )


def run(args: argparse.Namespace, terminal: Terminal) -> int:
    """Goes on from the last finished stage or epoch; returns the exit code."""

    def go():
        from tfkd.recipes import engine

        return engine.resume(args.folder, voice=terminal)

    return finish(go, pathlib.Path(args.folder), terminal)
