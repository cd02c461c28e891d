"""The stage that measures original and files on the test part, and judges by the gates."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import tempfile
from typing import Any

import tf_keras as keras

from tfkd import export, report
from tfkd.recipes import planning
from tfkd.recipes.budget import Budget
from tfkd.recipes.data import guesses
from tfkd.recipes.run_state import Done, Run
from tfkd.recipes.stages import Verify

ORIGINAL = "original"
# Name of a row → the stage whose model it is.
_BETWEEN = {"student": "distil", "pruned": "prune"}
# Stage → what else helps if it loses too much.
_LOSING = {
    "distil": "take a larger student",
    "prune": "let it remove less",
    "quantize": "leave layers in float by `skip`",
}
_NOT_TENSORRT = "timed in ONNX Runtime on the processor, which says nothing of TensorRT on a GPU."


def verify(run: Run, settings: Verify) -> Done:
    """Measures, and judges."""
    measure = _detectors if run.task.kind == "boxes" else _classifiers
    table, final = measure(run, settings)
    rows = {row.model: row for row in table.rows}
    asked = gates(run)
    left = None if asked.max_macs_share is None else _macs_share(run)
    share = _float_share(run)
    verdict = report.judge(asked, rows[ORIGINAL], rows[final], float_share=share, macs_share=left)
    differing = run.folder.record("export").get("parity")
    if differing:
        verdict = dataclasses.replace(verdict, status=report.REGRESSED, note="; ".join(differing))
    run.voice.say(verdict.sentence)
    if advice := _advice(run, verdict) or _guessing(run, rows[final]):
        run.voice.say(advice)
    record = {"final": final, "table": table.to_dict(), "verdict": verdict.to_dict()}
    return Done({}, record | {"sentence": verdict.sentence, "advice": advice})


def gates(run: Run) -> report.Gates:
    """The gates of the recipe, and its budget as one."""
    wanted = dataclasses.asdict(run.recipe.gates)
    if run.task.kind == "boxes":
        wanted["max_map_drop"] = wanted.pop("max_drop")
    budget = None if run.recipe.budget is None else Budget.parse(run.recipe.budget)
    if budget is not None and budget.kind == "latency" and wanted["latency_ms"] is None:
        wanted["latency_ms"] = budget.value
    if budget is not None and budget.kind == "size" and wanted["size"] is None:
        wanted["size"] = int(budget.value)
    if budget is not None and budget.kind == "macs" and wanted["max_macs_share"] is None:
        wanted["max_macs_share"] = budget.value
    return report.Gates(**wanted)


def _float_share(run: Run) -> float | None:
    """Share of the operations of the first file that compute in float."""
    for made in run.folder.record("export").get("exports", ()):
        numbers = made["numbers"]
        if numbers.get("operations"):
            return float(numbers["float_operations"] / numbers["operations"])
    return None


def _advice(run: Run, verdict: report.Verdict) -> str:
    """What to try if too much is lost: the stage that lost most, and its settings; or ""."""
    if not any(check.gate in ("max_drop", "max_map_drop") for check in verdict.failed):
        return ""
    if not isinstance(run.original, keras.Model):
        return ""
    before, losses = run.task.score(run.original), {}
    for stage in _LOSING:
        settings = run.recipe.stage(stage)
        if settings and run.folder.is_done(stage):
            after = run.folder.record(stage)["score"]
            losses[stage] = (before - after, before, after, settings.epochs)
            before = after
    if not losses:
        return ""
    stage = max(losses, key=lambda name: losses[name][0])
    _, before, after, epochs = losses[stage]
    asked = f" (now {run.recipe.budget})" if stage == "prune" and run.recipe.budget else ""
    return (
        f"Most of it is lost in {stage}, from {100 * before:.2f} to {100 * after:.2f}: give it "
        f"more epochs than {epochs}, or {_LOSING[stage]}{asked}."
    )


def _guessing(run: Run, row: Any) -> str:
    """What to do about a model that guesses: what it lost says nothing then; or ""."""
    if run.task.kind == "boxes":
        scores = row.stats("map50")  # None without objects
        found = guesses(row.model, scores.mean, None) if scores else ""
    else:
        found = guesses(row.model, row.accuracy.mean / 100, run.task.found.test.y)
    return f"{found} Train longer, or on more examples." if found else ""


def _macs_share(run: Run) -> float | None:
    """Share of the multiply-accumulates that pruning has left, at the sizes of the data."""
    models = [run.current("prune"), run.current("quantize")]
    before, after = (report.profile(one, planning.input_shape(run, one)).macs for one in models)
    return after / before if before and after is not None else None


def _files(run: Run) -> dict[str, str]:
    """Name of a row → the path of an exported file; the first one is judged."""
    files = run.folder.document["stages"]["export"]["files"]
    kinds = ("tflite", "tensorrt")
    return {files[k]: str(run.folder.file(files[k])) for k in kinds if k in files}


def _models(run: Run) -> dict[str, Any]:
    """The original, and the float models between it and the files."""
    original = run.original
    if not isinstance(original, keras.Model):
        original = str(run.recipe.model)
    found = {ORIGINAL: original}
    for name, stage in _BETWEEN.items():
        if run.folder.is_done(stage) and run.recipe.stage(stage):
            found[name] = run.loaded(stage)
    return found


def _classifiers(run: Run, settings: Verify) -> tuple[report.Table, str]:
    models, files = _models(run), _files(run)
    last = run.current("quantize")
    named = len(run.task.class_names) == (last.output_shape[-1] if last.output_shape else 0)
    table = report.compare(
        {**models, **files},
        (run.task.examples(None), run.task.found.test.y),
        threads=settings.threads,
        like=dict.fromkeys(files, last),
        runs=settings.runs,
        seconds=settings.seconds,
        original=ORIGINAL,
        class_names=run.task.class_names if named else None,
    )
    notes = [f"{run.task.found.name}: {run.task.found}.", *table.notes]
    notes += [f"{name}: {_NOT_TENSORRT}" for name in files if name.endswith(".onnx")]
    table = dataclasses.replace(table, notes=notes)
    return table, next(iter(files))


def _detectors(run: Run, settings: Verify) -> tuple[report.DetectionTable, str]:
    """Files are scored as they are; models too, and timed as files in float32."""
    task: Any = run.task
    test, rows, timed = task.found.test, [], {}
    with tempfile.TemporaryDirectory() as folder:
        for name, model in _models(run).items():
            file = pathlib.Path(folder, f"{name}.tflite")
            task.to_tflite(model, file, "float32", 0)
            timed[name] = export.load_detector(file, threads=settings.threads)
            counts = model.count_params(), report.profile(model).macs, file.stat().st_size
            rows.append(report.DetectionRow(name, task.scores(model), *counts))
        for name, path in _files(run).items():
            if name.endswith(".tflite"):
                timed[name] = detector = export.load_detector(path, threads=settings.threads)
                found, shape = detector(test.x), test.x.shape[1:3]
                scores = report.detection(found, task.truth, task.class_names, image_size=shape)
            else:  # its two outputs are those of the model
                scores = task.scores(run.final())
            size = run.folder.file(name).stat().st_size
            rows.append(report.DetectionRow(name, scores, size=size))
        calls = {name: functools.partial(one, test.x[:1]) for name, one in timed.items()}
        times = report.latency(calls, runs=settings.runs, seconds=settings.seconds)
    rows = [dataclasses.replace(row, latency=times.get(row.model)) for row in rows]
    note = "Times and sizes are those of files in LiteRT, of models in float32: one image to boxes."
    notes = [f"{task.found.name}: {task.found}.", note]
    return report.DetectionTable(rows, notes), next(iter(_files(run)))


def restored(record: dict[str, Any]) -> tuple[Any, Any]:
    """Table and verdict of the record of this stage."""
    found = report.RunReport.from_dict(
        {"table": record["table"], "verdict": record["verdict"], "final": record["final"]}
    )
    return found.table, found.verdict
