"""The stage that writes the files, each compared with its model by running it."""

from __future__ import annotations

from typing import Any

from tfkd import artifacts, export
from tfkd.export.checking import VerificationError
from tfkd.recipes.run_state import Done, Run
from tfkd.recipes.stages import Export


def export_files(run: Run, settings: Export) -> Done:
    """Writes model.tflite, model.onnx, and the names of the classes beside them."""
    model, task, target = run.final(), run.task, run.recipe.target
    done = Done(record={"exports": [], "parity": []})
    if target in ("tflite", "both"):
        io = settings.input or input_of(run)
        _write(run, done, "tflite", "model.tflite", task.to_tflite, model, io, settings.examples)
    if target in ("tensorrt", "both"):
        _write(run, done, "tensorrt", "model.onnx", task.to_onnx, model, settings.examples)
        findings = export.lint_tensorrt(run.folder.file("model.onnx"))
        done.record["lint"] = findings.summary()
        run.voice.say(f"export: TensorRT's rules on model.onnx: {findings.summary()}")
    artifacts.write_text(run.folder.file("labels.txt"), "".join(f"{n}\n" for n in task.class_names))
    done.files["labels"] = "labels.txt"
    scaling = getattr(task, "scaling", None)
    if scaling is not None:  # for ONNX files, which have no place for it
        artifacts.write_json(run.folder.file("preprocess.json"), scaling.to_json())
        done.files["preprocess"] = "preprocess.json"
    if task.kind == "boxes":
        task.anchors.save(run.folder.file("anchors.json"))  # type: ignore[attr-defined]
        done.files["anchors"] = "anchors.json"
    return done


def input_of(run: Run) -> str:
    """uint8 for an int8 file of images in 8 bits whose channels are scaled alike, else float32."""
    scaling = getattr(run.task, "scaling", None)
    if scaling is not None and len(set(scaling.mean)) + len(set(scaling.std)) > 2:
        run.voice.say(
            f"export: the file takes floats, as preprocess {scaling.name} scales channels apart"
        )
        return "float32"
    pixels = run.task.kind in ("images", "boxes") and run.task.found.train.x.dtype == "uint8"
    return "uint8" if pixels and run.recipe.stage("quantize") else "float32"


def _write(
    run: Run, done: Done, kind: str, name: str, write: Any, model: Any, *arguments: Any
) -> None:
    """Writes a file and notes it; one that differs from its model is kept, and judged by that."""
    path = run.folder.file(name)
    try:
        made = write(model, path, *arguments)
        verified = f"compared on {made.compared_on}"
    except VerificationError as error:
        kept = artifacts.read_manifest(path)
        recipe = kept["recipe"]
        mode, io = recipe.get("mode", "int8"), recipe.get("io", "float32")
        made = export.ExportReport(path, kept["bytes"], mode, io, kept["numbers"])
        done.record["parity"].append(f"{name}: {error}")
        verified = f"not verified: {error}"
    done.files[kind] = name
    done.files[f"{kind} manifest"] = artifacts.manifest_path(name).name
    done.record["exports"].append(made.to_dict() | {"path": name})
    run.voice.say(f"export: {name}, {made.bytes:,} bytes, {verified}")
