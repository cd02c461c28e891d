"""A quick look at what users wait for, beside the kept figures: what moved by over 10 %?

    python benchmarks/bench_check.py           # or: make bench-check
    python benchmarks/bench_check.py --keep    # writes benchmarks/ratios.json anew
    python benchmarks/bench_check.py --suite   # and the seconds of the default suite

    tfkd / bare step          a Distiller's step against a hand-written one, ResNet-20 to ResNet-8
    tfkd / Keras 3 step       against keras.distillation
    cached / plain step       a transformer of one layer, a TeacherCache against no teacher
    plan, ms a layer          half of the MACs of MobileNet
    shrink, ms a layer        the same, with its proof
    int8 / float file         ResNet-20 in LiteRT, one image, one thread
    Predictor / interpreter   the float file of ResNet-20
    import tfkd / python      a new process that does, against one that does nothing
    Distiller / TensorFlow    a new process that loads both, against one with TensorFlow alone
    suite, s                  of the default suite, with --suite

All but the times a layer and the suite's are ratios of medians measured in turns, so that
they hold on other processors within limits. Run it with nothing else on the machine.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import harness

from tfkd import artifacts

KEPT = pathlib.Path(__file__).with_name("ratios.json")
MOVED = 0.1
Figures = dict[str, float]


def ratio(jobs: dict[str, Callable[[], Any]], rounds: int, warmup: int = 3) -> float:
    """The first job's median by the second one's."""
    first, second = harness.medians(harness.in_turns(jobs, rounds, warmup=warmup)).values()
    return first / second


def steps(args: Any) -> Figures:
    import step_time

    sizes = argparse.Namespace(teacher_depth=20, student_depth=8, batch=args.batch)
    names = ("tfkd", "bare", "keras")
    jobs = {name: step_time.stepper(name, sizes) for name in names}
    ms = harness.medians(harness.in_turns(jobs, args.rounds, warmup=4))
    return {
        "tfkd / bare step": ms["tfkd"] / ms["bare"],
        "tfkd / Keras 3 step": ms["tfkd"] / ms["keras"],
    }


def cached(args: Any) -> Figures:
    import teacher_cache

    with tempfile.TemporaryDirectory() as folder:
        jobs = teacher_cache.variants("transformer, 4 layers to 1", folder)
        jobs = {name: jobs[name] for name in ("cached", "student alone")}
        return {"cached / plain step": ratio(jobs, args.rounds)}


def pruning(args: Any) -> Figures:
    import application_nets as nets

    found = []
    for _ in range(max(args.rounds // 5, 1)):
        model = nets.build("MobileNet")
        nets.randomize(model, 0)
        seconds = nets.time_steps(model)["seconds"]
        found.append({name: 1e3 * s / len(model.layers) for name, s in seconds.items()})
    ms = harness.medians({name: [one[name] for one in found] for name in found[0]})
    return {f"{name}, ms a layer": ms[name] for name in ("plan", "shrink")}


def files(args: Any) -> Figures:
    import numpy as np
    import predictor
    import quantize_speed

    import tfkd

    with tempfile.TemporaryDirectory() as name:
        model, folder = tfkd.models.resnet(20), pathlib.Path(name)
        tfkd.pruning.recalibrate(model, quantize_speed.images(64))
        tfkd.export.to_tflite(model, folder / "float.tflite")
        int8 = quantize_speed.quantized(model, "tflite")
        tfkd.export.to_tflite(int8, folder / "int8.tflite", io="int8")
        runs = {}
        for kind in ("int8", "float"):
            one = tfkd.runtime.Predictor(folder / f"{kind}.tflite", threads=1)
            codes = one.inputs[0].encode(quantize_speed.images(1))
            runs[kind] = lambda one=one, codes=codes: one.run_one(codes)
        x = np.zeros((1, 32, 32, 3), "float32")
        path = folder / "float.tflite"
        plain, bare = tfkd.runtime.Predictor(path), predictor.Bare(path)
        calls = {"Predictor": lambda: plain(x), "bare": lambda: bare(x)}
        return {
            "int8 / float file": ratio(runs, 20 * args.rounds),
            "Predictor / interpreter": ratio(calls, 20 * args.rounds),
        }


def starts(args: Any) -> Figures:
    def job(code: str) -> Callable[[], Any]:
        path = f"import sys; sys.path.insert(0, {str(harness.ROOT)!r})"
        command = [sys.executable, "-c", f"{path}; {code}"]
        return lambda: subprocess.run(command, check=True, capture_output=True)

    light = {"tfkd": job("import tfkd"), "python": job("pass")}
    bare = "import os; os.environ['TF_USE_LEGACY_KERAS'] = '1'; import tensorflow, tf_keras"
    heavy = {
        "Distiller": job("import tfkd; tfkd.Distiller"),
        "TensorFlow": job(f"{bare}; tf_keras.Model"),
    }
    rounds = max(args.rounds // 3, 1)
    return {
        "import tfkd / python": ratio(light, rounds, 1),
        "Distiller / TensorFlow": ratio(heavy, rounds, 1),
    }


def suite(args: Any) -> Figures:
    command = [sys.executable, "-m", "pytest", "-n", "2", "--dist", "worksteal"]
    began = time.monotonic()
    subprocess.run(command, cwd=harness.ROOT, check=True, stdout=subprocess.DEVNULL)
    return {"suite, s": time.monotonic() - began}


def main() -> None:
    parser = harness.Parser(__doc__, rounds=1, batch=4)
    parser.add_argument("--rounds", type=int, default=15, help="turns of each")
    parser.add_argument("--batch", type=int, default=32, help="images a step")
    parser.add_argument("--suite", action="store_true", help="time the default suite, too")
    parser.add_argument("--keep", action="store_true", help=f"write {KEPT.name}")
    args = parser.parse_args()
    kept = json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.exists() else {"figures": {}}
    now: Figures = {}
    for part in (starts, steps, cached, pruning, files, *([suite] if args.suite else [])):
        now |= part(args)
        print(f"{part.__name__}: done", flush=True)
    rows, moved = [], []
    for name, value in now.items():
        before = kept["figures"].get(name)
        change = None if before is None else value / before - 1
        cells = [f"{before:.3f}", f"{100 * change:+.0f} %"] if before else ["", ""]
        rows.append([name, cells[0], f"{value:.3f}", cells[1]])
        if change is not None and abs(change) > MOVED:
            moved.append(name)
    text = harness.table(["figure", "kept", "now", "change"], rows)
    text += f"\nMoved by more than {100 * MOVED:.0f} %: {', '.join(moved) or 'nothing'}.\n"
    if "commit" in kept:
        text += f"Kept: commit {kept['commit']}, {kept['date']}, {kept['processor']}.\n"
    harness.show(args, text, figures=now)
    if args.keep:
        figures = {name: round(value, 4) for name, value in (kept["figures"] | now).items()}
        artifacts.write_json(KEPT, {**harness.environment(), "figures": figures})


if __name__ == "__main__":
    main()
