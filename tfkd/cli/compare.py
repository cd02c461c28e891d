"""`tfkd compare`: accuracy, latency and size of models and files on one data set."""

from __future__ import annotations

import argparse
import os
import pathlib
from typing import TYPE_CHECKING, Any

from tfkd.cli import compare_classifiers, compare_detectors, data_flags, exit_codes, quiet
from tfkd.cli.exit_codes import UsageError
from tfkd.cli.parsing import Parser
from tfkd.cli.terminal import Terminal

if TYPE_CHECKING:
    pass

FILES = (".tflite", ".onnx", ".engine", ".plan")


def flags(parser: Parser) -> None:
    """Defines the flags."""
    parser.examples("""
        tfkd compare teacher.keras student.keras student.tflite --data=cifar10.npz
        tfkd compare before=a.tflite after=b.tflite --data=photos --output=report
        tfkd compare detector.keras detector.tflite --data=bccd --anchors=anchors.json
    """)
    parser.add_argument(
        "models",
        nargs="+",
        metavar="[NAME=]MODEL",
        help=".keras, .h5, SavedModel, .tflite or .onnx; NAME stands in the table",
    )
    data_flags.add(parser)
    data_flags.add_part(parser)
    parser.add_argument("--original", metavar="NAME", help="compare with this one, not the first")
    parser.add_argument("--output", metavar="DIR", help="write the page, Markdown, JSON and plots")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier page in DIR")
    parser.add_argument(
        "--runs", type=int, metavar="N", default=300, help="measured calls (default: 300)"
    )
    parser.add_argument(
        "--seconds",
        type=float,
        metavar="S",
        default=30.0,
        help="limit of each measurement (default: 30)",
    )
    parser.add_argument(
        "--threads", type=int, metavar="N", default=1, help="of one call (default: 1)"
    )
    parser.add_argument(
        "--anchors",
        metavar="JSON",
        help="of .keras detectors (default: anchors.json beside the file)",
    )
    parser.add_argument("--encoder", metavar="JSON", help="tokenizer of .keras text models")


def run(args: argparse.Namespace, terminal: Terminal) -> int:
    """Measures, prints the table, and writes the page."""
    names = _named(args.models)
    if args.original is not None and args.original not in names:
        raise UsageError(f"--original: expected one of {', '.join(names)}: {args.original}")
    for flag in ("runs", "threads", "examples"):
        if getattr(args, flag) is not None and getattr(args, flag) < 1:
            raise UsageError(f"--{flag}: expected 1 or more, received {getattr(args, flag)}")
    data_flags.size_of(args)
    _check_output(args)
    terminal.say(f"opening {', '.join(names.values())}")
    quiet.import_tensorflow()
    opened = {name: _opened(name, path) for name, path in names.items()}
    sides = {name: side for name, model in opened.items() if (side := _side(model))}
    data = data_flags.open_data(args, terminal, next(iter(sides.values()), None))
    table: Any
    if data.kind == "boxes":
        anchors = compare_detectors.anchors_of(names, opened, args.anchors)
        table = compare_detectors.table(opened, anchors, sides, data, args, terminal)
    else:
        _check_sides(sides)
        table = compare_classifiers.table(opened, names, data, args, terminal)
    if args.output:
        table.save(args.output, plots=_has_matplotlib(terminal))
        page = pathlib.Path(args.output, f"{table.file_name}.html")
        terminal.say(f"wrote {page}")
    terminal.print(table)
    return exit_codes.DONE


def _named(models: list[str]) -> dict[str, str]:
    """Name → path: `name=path`, or the path's own name."""
    found: dict[str, str] = {}
    for text in models:
        name, equals, path = text.partition("=")
        if not equals:
            path = text
            name = pathlib.Path(text).stem
            if name in found:
                name = pathlib.Path(text).name
        if not path or name in found:
            raise UsageError(f"Two models are called {name!r}: write NAME={path or 'PATH'}.")
        found[name] = path
    return found


def _check_output(args: argparse.Namespace) -> None:
    """Refuses to replace an earlier page."""
    if not args.output or args.overwrite:
        return
    folder = pathlib.Path(args.output)
    if folder.is_file():
        raise UsageError(f"--output: {folder} is a file.")
    earlier = [name for name in ("table.html", "detectors.html") if (folder / name).exists()]
    if earlier:
        raise UsageError(
            f"--output: {folder} holds {earlier[0]} already. Give another folder, or --overwrite."
        )


def _has_matplotlib(terminal: Terminal) -> bool:
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        terminal.warn("The page has no plots: pip install tfkd[cli] adds matplotlib.")
        return False
    return True


def _opened(name: str, path: str) -> Any:
    """A Keras model or a restored SavedModel; the path of an exported file."""
    from tfkd.recipes.models import open_model

    if pathlib.Path(path).suffix.lower() in FILES:
        if not os.path.isfile(path):
            raise FileNotFoundError(f"{name}: there is no file {path!r}.")
        return pathlib.Path(path)
    if not os.path.exists(path):
        raise FileNotFoundError(f"{name}: there is no file or folder {path!r}.")
    model = open_model(path, role="teacher")
    return model if hasattr(model, "layers") else pathlib.Path(path)


def _side(model: Any) -> tuple[int, int] | None:
    """Height and width of the images that a model takes; None if it takes any, or no images."""
    from tfkd import runtime

    if isinstance(model, pathlib.Path):
        with runtime.Predictor(model, warmup=0) as predictor:
            shape: tuple[Any, ...] = predictor.inputs[0].shape
    else:
        shape = model.input_shape if isinstance(model.input_shape, tuple) else ()
    if len(shape) != 4 or any(n is None or n < 1 for n in shape[1:3]):
        return None
    return shape[1], shape[2]


def _check_sides(sides: dict[str, tuple[int, int]]) -> None:
    """Raises ValueError if models take images of different sizes."""
    if len(set(sides.values())) > 1:
        shown = ", ".join(f"{name}: {h}×{w}" for name, (h, w) in sides.items())
        raise ValueError(
            f"The models take images of different sizes ({shown}), which can't be measured on the "
            "same input. Compare those of one size."
        )
