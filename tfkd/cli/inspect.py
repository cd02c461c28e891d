"""`tfkd inspect`."""

from __future__ import annotations

import argparse

from tfkd.cli.parsing import Parser
from tfkd.cli.terminal import Terminal


def flags(parser: Parser) -> None:
    """Defines the flags."""
    parser.examples("tfkd inspect\ntfkd inspect --json")


def run(args: argparse.Namespace, terminal: Terminal) -> int:
    """Does the work; returns the exit code."""
    raise NotImplementedError
