"""The flags that say which data to read and how, for all verbs that take `--data`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from tfkd.cli.exit_codes import UsageError
from tfkd.cli.parsing import Parser
from tfkd.cli.terminal import Terminal

if TYPE_CHECKING:
    from tfkd.recipes.data import Data, Part

_DATA = (
    "a folder of images (one folder a class), .npz, .tsv, a VOC or COCO folder, "
    "module:function, digits, cifar10, ..."
)
_PREPROCESS = (
    "pixels as the model takes them: none, 0-255, 0-1, -1-1, imagenet, standardize, or mean,std of "
    "pixels in 0..255; written --preprocess=-1-1 (default: %(default)s, found by values)"
)


def add(parser: Parser, required: bool = True, positional: bool = False) -> None:
    """Adds `--data` (or DATA) and how it is read and split."""
    group = parser.add_argument_group("data")
    if positional:
        group.add_argument("data", metavar="DATA", help=_DATA)
    else:
        group.add_argument("--data", required=required, metavar="DATA", help=_DATA)
    group.add_argument(
        "--size", metavar="N|H,W", help="resize images to this height and width in pixels"
    )
    add_preprocess(group)
    group.add_argument(
        "--columns",
        metavar="TEXT,LABEL",
        help="of a .tsv file, by names in its header or numbers from 0 (default: they are found)",
    )
    group.add_argument(
        "--val_fraction",
        type=float,
        metavar="F",
        default=0.1,
        help="of the training part, to validate, if the data have no such part (default: 0.1)",
    )
    group.add_argument(
        "--test_fraction",
        type=float,
        metavar="F",
        default=0.2,
        help="of all, to test, if the data have no such part (default: 0.2)",
    )
    group.add_argument(
        "--data_seed", type=int, metavar="N", default=0, help="of these splits (default: 0)"
    )
    group.add_argument(
        "--on_error",
        choices=("raise", "skip"),
        default="raise",
        help="broken images and faulty annotations of boxes: list them and stop, or leave them out",
    )


def add_preprocess(group: argparse._ActionsContainer) -> None:
    """Adds `--preprocess`."""
    group.add_argument("--preprocess", default="auto", metavar="NAME", help=_PREPROCESS)


def add_part(parser: Parser) -> None:
    """Adds `--part` and `--examples`, for `part_of`."""
    parts = ("train", "val", "test")
    parser.add_argument("--part", choices=parts, default="test", help="of the data (default: test)")
    parser.add_argument(
        "--examples", type=int, metavar="N", help="use so many of them, evenly spaced"
    )


def part_of(data: Data, args: argparse.Namespace) -> Part:
    """The examples of `--part`, as many as `--examples` says."""
    part = getattr(data, args.part)
    if args.examples is None or args.examples >= len(part):
        return part
    return part.rows(np.linspace(0, len(part) - 1, args.examples).astype(int))


def size_of(args: argparse.Namespace) -> tuple[int, int] | None:
    """`--size` as (height, width).

    Raises:
        UsageError: if it is none.
    """
    if args.size is None:
        return None
    parts = args.size.replace("x", ",").split(",")
    if not all(part.strip().isdecimal() for part in parts) or len(parts) > 2:
        raise UsageError(f"--size: expected a number or two, such as 224 or 160,224: {args.size}")
    numbers = [int(part) for part in parts]
    return numbers[0], numbers[-1]


def columns_of(args: argparse.Namespace) -> list[str] | None:
    """`--columns` as [text, label].

    Raises:
        UsageError: if it is not two.
    """
    if args.columns is None:
        return None
    parts = [part.strip() for part in args.columns.split(",")]
    if len(parts) != 2 or not all(parts):
        raise UsageError(f"--columns: expected two, such as sentence,label or 1,2: {args.columns}")
    return parts


def open_data(
    args: argparse.Namespace, terminal: Terminal, size: Sequence[int] | None = None
) -> Data:
    """The data of the flags; `size` (height, width) is used if `--size` is not given."""
    from tfkd.recipes.data import open_data as opened

    return opened(
        args.data,
        size=size_of(args) or size,
        val_fraction=args.val_fraction,
        test_fraction=args.test_fraction,
        seed=args.data_seed,
        on_error=args.on_error,
        columns=columns_of(args),
        say=terminal.say,
    )
