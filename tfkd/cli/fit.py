"""`tfkd fit`: a folder of images, texts or boxes → a small student's verified file."""

from __future__ import annotations

import argparse
import os
import pathlib
from typing import Any

from tfkd.cli import data_flags
from tfkd.cli import run as running
from tfkd.cli.compress import chosen_steps, common_flags, quantized, recipe_of
from tfkd.cli.parsing import Parser
from tfkd.cli.terminal import Terminal
from tfkd.recipes.stages import Distil

STEPS = ("distil", "prune", "quantize")


def flags(parser: Parser) -> None:
    """Defines the flags."""
    data_flags.add(parser, positional=True)
    parser.add_argument(
        "--teacher", help="a trained model's file, or a network to train; default: one that fits"
    )
    parser.add_argument("--student", help="a network, such as resnet8; default: one that fits")
    parser.add_argument(
        "--steps", help="of distil,prune,quantize (default: distil,quantize; prune with --budget)"
    )
    common_flags(parser)
    parser.examples(
        """tfkd fit photos --output=small
        tfkd fit bccd --size=160 --epochs=40 --on_error=skip
        tfkd fit cifar10.npz --teacher=resnet56.keras --student=resnet20 --budget=macs:60%"""
    )


def run(args: argparse.Namespace, terminal: Terminal) -> int:
    """Fits a student; returns the exit code."""
    default = "distil,prune,quantize" if args.budget else "distil,quantize"
    steps = chosen_steps(args.steps or default, STEPS)
    epochs = 1 if args.quick else args.epochs
    given: dict[str, Any] = {} if epochs is None else {"epochs": epochs}
    settings: dict[str, Any] = {"data": args.data, "budget": args.budget}
    stages: list[dict[str, Any]] = []
    if args.teacher and os.path.exists(args.teacher):
        settings["model"] = args.teacher
    else:
        stages.append({"stage": "train_teacher", "network": args.teacher, **given})
    if "distil" in steps:
        stages.append({"stage": "distil", "student": args.student, **given})
    if "prune" in steps:
        stages.append({"stage": "prune", **given})
    if "quantize" in steps:
        stages.append({"stage": "quantize", **quantized(epochs, Distil.epochs)})
    recipe = recipe_of(args, stages, **settings)
    return running.start(recipe, args, terminal, pathlib.Path(args.data).stem)
