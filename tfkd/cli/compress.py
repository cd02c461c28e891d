"""`tfkd compress`: a model and data → verified files for a phone or for TensorRT."""

from __future__ import annotations

import argparse
import pathlib
from typing import Any

from tfkd.cli import data_flags
from tfkd.cli import run as running
from tfkd.cli.exit_codes import UsageError
from tfkd.cli.parsing import Parser
from tfkd.cli.terminal import Terminal
from tfkd.recipes.fields import RecipeError
from tfkd.recipes.recipe import TARGETS, GateSettings, Recipe
from tfkd.recipes.stages import METHODS, Prune, Quantize

STEPS = ("prune", "quantize")
BUDGET = "macs:50%"  # if filters are removed and nothing says how many
_QUICK_VERIFY = {"runs": 20, "seconds": 2.0}


def flags(parser: Parser) -> None:
    """Defines the flags."""
    parser.add_argument(
        "model", metavar="MODEL", help=".keras (Keras 2 or 3), .h5, or a name such as resnet20"
    )
    data_flags.add(parser)
    parser.add_argument("--steps", default=",".join(STEPS), help="of prune,quantize: which of them")
    parser.add_argument("--method", choices=METHODS, help="how filters are removed")
    common_flags(parser)
    parser.examples(
        """tfkd compress mobilenet.keras --data=cifar10.npz --budget=macs:50% --output=small
        tfkd compress sentiment.keras --data=sst2 --max_drop=0.5
        tfkd compress resnet.keras --data=photos --target=tensorrt --dry_run"""
    )


def common_flags(parser: Parser) -> None:
    """Defines the flags that compress and fit share."""
    add = parser.add_argument_group("what is wanted").add_argument
    add("--target", choices=TARGETS, default="tflite", help="which files (default: tflite)")
    add("--budget", help="latency:2ms, macs:50%% or size:500KB (compress: macs:50%%)")
    add("--max_drop", type=float, default=1.0, help="points of accuracy that may be lost (1.0)")
    gates = ", ".join(name for name in GateSettings.__dataclass_fields__ if name != "max_drop")
    add("--gate", action="append", default=[], metavar="NAME=NUMBER", help=f"one of {gates}")
    add = parser.add_argument_group("how").add_argument
    add("--epochs", type=int, help="passes over the data of the longest training")
    add("--quick", action="store_true", help="one epoch and short measurements: only a try")
    add("--batch_size", type=int, default=32, help="examples of a step (32)")
    add("--vocabulary", help="words of a model that takes token ids: a text file or encoder.json")
    add("--input", choices=("uint8", "int8", "float32"), help="what a .tflite file takes")
    add("--augment", choices=("yes", "no"), default="yes", help="shift and flip training images")
    add("--seed", type=int, default=0, help="of everything that is random (0)")
    running.run_flags(parser)


def run(args: argparse.Namespace, terminal: Terminal) -> int:
    """Compresses a model; returns the exit code."""
    steps = chosen_steps(args.steps, STEPS)
    epochs = 1 if args.quick else args.epochs
    stages: list[dict[str, Any]] = []
    budget = args.budget
    if "prune" in steps:
        stages.append({"stage": "prune", **_given(epochs=epochs, method=args.method)})
        budget = budget or BUDGET
    if "quantize" in steps:
        stages.append({"stage": "quantize", **quantized(epochs, Prune.epochs)})
    recipe = recipe_of(args, stages, model=args.model, data=args.data, budget=budget)
    return running.start(recipe, args, terminal, pathlib.Path(args.model).stem)


def quantized(epochs: int | None, longest: int) -> dict[str, Any]:
    """The epochs with rounding, in the proportion of the defaults; at least one."""
    if not epochs:
        return _given(epochs=epochs)
    return {"epochs": max(round(epochs * Quantize.epochs / longest), 1)}


def chosen_steps(text: str, known: tuple[str, ...]) -> list[str]:
    """The names in --steps.

    Raises:
        UsageError: for another name, or none.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    wrong = [name for name in names if name not in known]
    if wrong or not names:
        expected = f"some of {','.join(known)}"
        raise UsageError(f"--steps: expected {expected}, received {text!r}.")
    return names


def recipe_of(
    args: argparse.Namespace, stages: list[dict[str, Any]], **settings: Any
) -> Recipe:  # fmt: skip
    """The recipe that the common flags describe, with these stages of training.

    Raises:
        UsageError: with every mistake.
    """
    verify = _QUICK_VERIFY if args.quick else {}
    gates: dict[str, Any] = {"max_drop": args.max_drop}
    for text in args.gate:
        name, _, number = text.partition("=")
        try:
            gates[name] = int(number) if name == "size" else float(number)
        except ValueError:
            raise UsageError(f"--gate: expected NAME=NUMBER, received {text!r}.") from None
    preprocess = None if args.preprocess == "auto" else args.preprocess
    values = {
        "target": args.target, "gates": gates, "seed": args.seed, "batch_size": args.batch_size,
        "augment": args.augment == "yes",
        "val_fraction": args.val_fraction, "test_fraction": args.test_fraction,
        "data_seed": args.data_seed, "on_error": args.on_error,
        **_given(preprocess=preprocess, size=data_flags.size_of(args)),
        **_given(columns=data_flags.columns_of(args)),
        **_given(vocabulary=args.vocabulary), **settings,
        "stages": [
            *stages, {"stage": "export", **_given(input=args.input)},
            {"stage": "verify", **verify}, "report",
        ],
    }  # fmt: skip
    try:
        return Recipe.from_dict(values, "what the flags say")
    except RecipeError as error:
        raise UsageError(str(error)) from error


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}
