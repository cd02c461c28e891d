"""The stage that writes the files, each compared with its model by running it."""

from __future__ import annotations

from typing import Any

from tfkd import artifacts, export
from tfkd.export.checking import VerificationError
from tfkd.recipes.outcome import ParityError
from tfkd.recipes.run_state import Done, Run
from tfkd.recipes.stages import Export


def export_files(run: Run, settings: Export) -> Done:
    """Writes model.tflite, model.onnx, and the names of the classes beside them."""
    model, task, target = run.final(), run.task, run.recipe.target
    done = Done(record={"exports": []})
    if target in ("tflite", "both"):
        io = settings.input or _input(run)
        made = _verified(task.to_tflite, model, run.folder.file("model.tflite"), io, settings)
        _note(done, "tflite", "model.tflite", made)
        run.voice.say(f"export: model.tflite, {made.bytes:,} bytes, verified: {made.verified}")
    if target in ("tensorrt", "both"):
        path = run.folder.file("model.onnx")
        made = _verified(task.to_onnx, model, path, None, settings)
        _note(done, "tensorrt", "model.onnx", made)
        findings = export.lint_tensorrt(path)
        done.record["lint"] = findings.summary()
        run.voice.say(f"export: model.onnx, {made.bytes:,} bytes; lint: {findings.summary()}")
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


def _input(run: Run) -> str:
    """uint8 for an int8 file of images in 8 bits whose channels are scaled alike, else float32."""
    scaling = getattr(run.task, "scaling", None)
    if scaling is not None and len(set(scaling.mean)) + len(set(scaling.std)) > 2:
        run.voice.say(
            f"export: the file takes floats, as preprocess {scaling.name} scales channels apart"
        )
        return "float32"
    pixels = run.task.kind in ("images", "boxes") and run.task.found.train.x.dtype == "uint8"
    return "uint8" if pixels and run.recipe.stage("quantize") else "float32"


def _verified(write: Any, model: Any, path: Any, io: str | None, settings: Export) -> Any:
    """The report of an export.

    Raises:
        ParityError: if the file does not compute what the model does.
    """
    try:
        return write(model, path, *([] if io is None else [io]), settings.examples)
    except VerificationError as error:
        raise ParityError(str(error)) from error


def _note(done: Done, kind: str, name: str, made: Any) -> None:
    done.files[kind] = name
    manifest = artifacts.manifest_path(name).name
    done.files[f"{kind} manifest"] = manifest
    done.record["exports"].append(made.to_dict() | {"path": name})
