"""`tfkd inspect`: what is in a model or an exported file, and what can be done with it."""

from __future__ import annotations

import argparse
import os
import pathlib
import tempfile
from typing import Any

from tfkd.cli import exit_codes, quiet
from tfkd.cli.parsing import Parser
from tfkd.cli.sections import Listing, Section, Sections
from tfkd.cli.terminal import Terminal

FILES = (".tflite", ".onnx", ".engine", ".plan")
_MOST = 12  # rows of a list of operations


def flags(parser: Parser) -> None:
    """Defines the flags."""
    parser.examples("""
        tfkd inspect model.keras             # layers, and what can be pruned and quantized
        tfkd inspect MobileNetV2 --skip_exports
        tfkd inspect model_int8.tflite       # inputs, outputs, labels, operations in float
        tfkd inspect model.onnx --json       # with what TensorRT would refuse
    """)
    parser.add_argument(
        "model",
        metavar="MODEL-OR-FILE",
        help=".keras (Keras 2 or 3), .h5, SavedModel, a name such as resnet20; .tflite, .onnx",
    )
    parser.add_argument(
        "--reduction",
        type=float,
        metavar="F",
        default=0.5,
        help="of the MACs, for which pruning is planned (default: %(default)s)",
    )
    parser.add_argument(
        "--input_shape", metavar="H,W,C", help="of an example, for a model that leaves sizes open"
    )
    parser.add_argument(
        "--all_layers", action="store_true", help="list the integer layers too, not only the others"
    )
    parser.add_argument(
        "--skip_exports",
        action="store_true",
        help="do not try which of the file formats take the model, which needs some seconds",
    )


def run(args: argparse.Namespace, terminal: Terminal) -> int:
    """Prints the sections that fit the kind of model or file."""
    if not 0 < args.reduction < 1:
        raise exit_codes.UsageError(f"--reduction: expected above 0 and below 1: {args.reduction}")
    shape = _shape(args.input_shape)
    terminal.say(f"opening {args.model}")
    quiet.import_tensorflow()
    path = pathlib.Path(args.model)
    if path.suffix.lower() in FILES:
        terminal.print(Sections(_file(path)))
        return exit_codes.DONE
    from tfkd.recipes.models import open_model

    model = open_model(args.model, role="teacher")
    if not hasattr(model, "layers"):
        terminal.print(Sections(_saved_model(path)))
        return exit_codes.DONE
    terminal.print(Sections(_model(model, shape, args, terminal)))
    return exit_codes.DONE


def _shape(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    parts = text.split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise exit_codes.UsageError(f"--input_shape: expected numbers such as 32,32,3: {text}")
    return tuple(map(int, parts))


def _model(
    model: Any, shape: tuple[int, ...] | None, args: argparse.Namespace, terminal: Terminal
) -> dict[str, Section]:
    from tfkd import pruning, quantization, report

    found: dict[str, Section] = {}
    try:
        found["Layers"] = report.profile(model, shape)
    except (TypeError, ValueError) as error:
        found["Layers"] = f"Not counted; --input_shape=H,W,C gives it: {error}"
    try:
        found["Pruning"] = pruning.plan(model, args.reduction, input_shape=shape)
    except (TypeError, ValueError) as error:
        found["Pruning"] = f"Not planned: {error}"
    try:
        decisions = quantization.quantize(model, target="both").report
        found["Quantization"] = decisions if args.all_layers else _not_integers(decisions)
    except (TypeError, ValueError) as error:
        found["Quantization"] = f"Can't be quantized: {error}"
    if not args.skip_exports:
        terminal.say("trying the file formats")
        found["Targets"] = _targets(model)
    return found


def _not_integers(decisions: Any) -> Listing:
    """The layers that do not compute in integers, and the counts of all."""
    rows = [
        (row.layer, row.kind, row.action, row.why)
        for row in decisions
        if row.action in ("float", "output only")
    ]
    counts = ", ".join(f"{count} {action}" for action, count in decisions.counts.items())
    note = f"{counts}. " + (
        "The others are integers; --all_layers lists them." if rows else "None is left in float."
    )
    return Listing(("layer", "kind", "decision", "why"), rows, 4, note)


def _targets(model: Any) -> dict[str, str]:
    """What TFLite and TensorRT say to the model, each tried in a temporary folder."""
    from tfkd import export

    with tempfile.TemporaryDirectory() as folder:
        files = {name: os.path.join(folder, f"m.{name}") for name in ("tflite", "onnx")}

        def onnx() -> str:
            export.to_onnx(model, files["onnx"], target="tensorrt", verify=False)
            findings = export.lint_tensorrt(files["onnx"])
            lines = "; ".join(f"{finding} -> {finding.fix}" for finding in findings)
            return f"exported; TensorRT's rules: {lines or findings.summary()}"

        def tflite() -> str:
            export.to_tflite(model, files["tflite"], verify=False)
            return "exported, and LiteRT loads it"

        return {"TFLite": _tried(tflite), "TensorRT": _tried(onnx)}


def _tried(attempt: Any) -> str:
    try:
        return attempt()
    except ImportError as error:
        return f"not tried: {error}"
    except (TypeError, ValueError, RuntimeError) as error:
        return f"refused: {error}"


def _saved_model(path: pathlib.Path) -> dict[str, Section]:
    files = [file for file in path.rglob("*") if file.is_file()]
    about: dict[str, Any] = {
        "folder": str(path),
        "kind": "SavedModel without Keras layers: it can teach and run, not be changed",
        "bytes": sum(file.stat().st_size for file in files),
    }
    return {"File": about, **_ports(path)}


def _file(path: pathlib.Path) -> dict[str, Section]:
    from tfkd import artifacts

    if not path.is_file():
        raise FileNotFoundError(f"There is no file {str(path)!r}.")
    about: dict[str, Any] = {"file": str(path), "bytes": path.stat().st_size}
    about["sha256"] = artifacts.sha256(path)
    has_manifest = artifacts.manifest_path(path).is_file()
    if has_manifest:
        artifacts.verify(path)
    about["manifest"] = "agrees with the file" if has_manifest else "none beside it"
    if path.suffix.lower() not in (".tflite", ".onnx"):
        return {"File": about}
    found: dict[str, Section] = {"File": about, **_ports(path)}
    if path.suffix.lower() == ".tflite":
        return found | {"Operations": _tflite_operations(path)}
    return found | _onnx_operations(path)


def _ports(path: pathlib.Path) -> dict[str, Section]:
    """Inputs, outputs, and what the file says of labels, scaling and vocabulary."""
    from tfkd import runtime

    with runtime.Predictor(path, warmup=0) as predictor:
        rows = [
            (side, port.name, "×".join("?" if n < 0 else str(n) for n in port.shape),
             str(port.dtype), port.scale or None, port.zero_point if port.scale else None,
             "" if port.limits is None else "{:.4g} to {:.4g}".format(*port.limits))
            for side, ports in (("input", predictor.inputs), ("output", predictor.outputs))
            for port in ports
        ]  # fmt: skip
        head = ("side", "name", "shape", "dtype", "scale", "zero point", "range")
        labels, scaling, encoder = predictor.labels, predictor.scaling, predictor.encoder
    about: dict[str, Any] = {"labels": _flat(labels), "scaling": _scaling(scaling)}
    if encoder is not None:
        about["tokenizer"] = f"{len(encoder.vocabulary)} words, {encoder.max_length} a text"
    if path.suffix.lower() == ".tflite" and (detector := _detector(path)):
        about |= detector
    return {"Inputs and outputs": Listing(head, rows, 4), "Metadata": about}


def _flat(labels: Any) -> Any:
    if isinstance(labels, dict):
        return [f"{output}: {', '.join(names)}" for output, names in labels.items()]
    return labels


def _scaling(scaling: Any) -> str | None:
    if scaling is None:
        return None
    mean, std = (", ".join(f"{value:g}" for value in values) for values in scaling)
    return f"(pixels - {mean}) / {std}" if (mean, std) != ("0", "1") else "raw pixels"


def _detector(path: pathlib.Path) -> dict[str, Any]:
    """What a detector's file holds; {} for another file."""
    from tfkd.formats import associated_files, detector_recipe

    if not any("detector" in name for name in associated_files.read(path)):
        return {}
    recipe = detector_recipe.read(path)
    return {
        "labels": recipe.labels,
        "scaling": _scaling((recipe.mean, recipe.std)),
        "detector": f"{recipe.heads} heads, {len(recipe.priors):,} anchors, images "
        + "×".join(map(str, recipe.size)),
    }


def _tflite_operations(path: pathlib.Path) -> Listing:
    from tfkd.formats import litert

    counts = litert.operations(path)
    found = litert.in_float(path)
    kinds: dict[str, list[str]] = {}
    for operation in found:
        kinds.setdefault(operation["operation"], []).append(operation["tensor"])
    rows = [(kind, len(tensors), tensors[0]) for kind, tensors in kinds.items()]
    total, in_float = counts["operations"], counts["float_operations"]
    note = (
        f"{in_float} of {total} operations ({in_float / max(total, 1):.0%}) compute in float; "
        f"{counts['conversions']} convert between float and integers."
    )
    ordered = sorted(rows, key=lambda row: -row[1])[:_MOST]
    return Listing(("operation in float", "count", "first result"), ordered, 1, note)


def _onnx_operations(path: pathlib.Path) -> dict[str, Section]:
    from tfkd import export
    from tfkd.formats import onnx_nodes

    nodes = list(onnx_nodes.all_nodes(onnx_nodes.load(path).graph))
    restored = {n.output[0] for n in nodes if n.op_type == "DequantizeLinear"}
    pairs = ("QuantizeLinear", "DequantizeLinear")
    kinds: dict[str, list[bool]] = {}
    for node in nodes:
        if node.op_type not in pairs:
            kinds.setdefault(node.op_type, []).append(
                bool(node.input and node.input[0] in restored)
            )
    rows = [(kind, len(found), len(found) - sum(found)) for kind, found in kinds.items()]
    total, in_float = sum(row[1] for row in rows), sum(row[2] for row in rows)
    note = f"{in_float} of {total} operations ({in_float / max(total, 1):.0%}) read float values."
    head = ("operation", "count", "reading float")
    ordered = sorted(rows, key=lambda row: -row[1])[:_MOST]
    return {
        "Operations": Listing(head, ordered, 1, note),
        "TensorRT's rules": export.lint_tensorrt(path),
    }
