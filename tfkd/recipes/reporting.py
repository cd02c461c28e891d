"""The stage that writes the page of a run, from what the other stages wrote down."""

from __future__ import annotations

import json
from typing import Any

from tfkd import export, report
from tfkd.recipes import judging
from tfkd.recipes.run_folder import NAME
from tfkd.recipes.run_state import Done, Run
from tfkd.recipes.stages import NAMES, Report


def write_page(run: Run, settings: Report) -> Done:
    """Writes report.html, .md and .json, and the same numbers for TensorBoard."""
    folder, task = run.folder, run.task
    judged = folder.record("verify")
    table, verdict = judging.restored(judged)
    entries = folder.document["stages"]
    files = {
        what: name for entry in entries.values() for what, name in entry.get("files", {}).items()
    }
    page = report.RunReport(
        verdict,
        table,
        final=judged["final"],
        about=_about(run),
        files={**files, "run.json": NAME},
        stages=_stages(run),
        layers=[report.LayerKept(**one) for one in folder.record("prune").get("layers", ())],
        quantization=folder.record("quantize").get("decisions", ()),
        exports=folder.record("export")["exports"],
        pictures=_pictures(run, table, judged["final"], settings.pictures),
        scenes=_scenes(run, settings.pictures),
        command=folder.document["command"] or "",
        recipe=run.recipe.to_dict(),
        seed=run.recipe.seed,
        versions={k: v for k, v in folder.document["versions"].items() if v},
        hashes=folder.document["hashes"],
        notes=_notes(run),
    )
    page.save(folder.path)
    page.to_tensorboard(run.logs / "report", plots=False)
    made = {kind: f"report.{kind}" for kind in ("html", "md", "json")}
    run.voice.say(f"report: {folder.file('report.html')} ({task.measure} and costs)")
    return Done(made, {"metrics": json.loads(json.dumps(page.metrics()))})


def _about(run: Run) -> dict[str, str]:
    made = run.folder.document["created"]
    model = run.recipe.model or "trained in this run"
    examples = str(run.task.found)
    return {"data": run.recipe.data, "model": model, "date": made, "examples": examples}


def _stages(run: Run) -> list[Any]:
    """Curves of each training, and the decay of filters."""
    found = []
    for name in NAMES:
        record = run.folder.record(name)
        seconds = run.folder.document["stages"].get(name, {}).get("seconds")
        curves = record.get("curves", {})
        for index, (part, history) in enumerate(curves.items()):
            schedules = {}
            if part == "prune_decay":
                schedules = _decay(record["decay"], history)
            whole = seconds if index == len(curves) - 1 else None
            found.append(report.Stage(part, history, schedules, whole))
    return found


def _decay(history: list[list[float]], curves: dict[str, Any]) -> dict[str, Any]:
    """The decay rate at the end of each epoch, of (step, rate, selected) entries."""
    known = curves.get("decay_rate")
    rates = [entry[1] for entry in history]
    return {"decay rate": known if known is not None else rates}


def _pictures(run: Run, table: Any, final: str, count: int) -> dict[str, str]:
    """Test examples that changed class, as pictures."""
    row = next(row for row in table.rows if row.model == final)
    details = getattr(row, "details", None)
    if run.task.kind != "images" or details is None or not count:
        return {}
    try:
        changed = [change.example for change in details.changes[:count]]
        return report.thumbnails(run.task.found.test.x, changed) if changed else {}
    except ImportError:  # Pillow
        return {}


def _scenes(run: Run, count: int) -> dict[str, str]:
    """Test images with the boxes that the .tflite file of a detector finds in them."""
    task: Any = run.task
    name = run.folder.document["stages"]["export"]["files"].get("tflite")
    if task.kind != "boxes" or name is None or not count:
        return {}
    x = task.found.test.x[:count]
    found = export.load_detector(run.folder.file(name))(x)
    try:
        pictures = [
            report.detection_pictures(
                x[i : i + 1],
                {key: value[i : i + 1] for key, value in found.items()},
                {key: value[i : i + 1] for key, value in task.truth.items()},
                task.class_names,
                columns=1,
                size=240,
            )
            for i in range(len(x))
        ]
        return {f"test image {i}": report.data_url(one) for i, one in enumerate(pictures)}
    except ImportError:  # Pillow
        return {}


def _notes(run: Run) -> list[str]:
    advice = run.folder.record("verify").get("advice")
    notes = [advice] if advice else []
    for name in NAMES:
        teacher = run.folder.record(name).get("teacher")
        if teacher:
            notes.append(f"Teacher of stage {name}: {teacher}.")
    lint = run.folder.record("export").get("lint")
    return notes + ([f"TensorRT's rules on model.onnx: {lint}."] if lint else [])
