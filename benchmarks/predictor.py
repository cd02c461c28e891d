"""Benchmarks `tfkd.runtime.Predictor`: overhead, cache, start-up, threads, XLA.

    python benchmarks/predictor.py [--parts overhead start threads xla] [--seconds 60]
        [--rounds 2000] [--starts 5] [--batch 32] [--out saved_models/predictor]

Untrained networks: times do not depend on the values of the weights.

  overhead  one example through a Predictor, with shared calls (`batch`) and with a kept
            result, over set_tensor, invoke and get_tensor by hand, in turns
  start     opening a file and its first answer, each in a process of its own: without
            a folder for artefacts, with an empty one, and with what that start left
  threads   8 threads for --seconds: wrong answers and growth of memory; then examples
            a second of 8 clients that send one each, against the best that the bare
            interpreter does in one thread over batch sizes 1 to 64, in turns; by the
            clock and by the processor's time
  xla       .keras files with and without jit_compile, in turns
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import threading
import time
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

CLIENTS = 8
PARTS = ("overhead", "start", "threads", "xla")
SIZES = (1, 2, 4, 8, 16, 32, 64)
STARTS = ("large.tflite", "large.onnx", "small.onnx", "large.keras", "small.keras", "large_saved")
SLOT = 1.0


def write(folder: pathlib.Path) -> None:
    """The files: a transformer of 18 million weights, a small one, ResNet-20."""
    import tfkd

    folder.mkdir(parents=True, exist_ok=True)
    text = tfkd.models.text_transformer
    large = text(20000, 4, max_length=48, layers=6, width=384, heads=6)
    small = text(2000, 4, max_length=48, layers=2, width=96, heads=4)
    resnet = tfkd.models.resnet(20, input_shape=(32, 32, 3))
    for name, model in (("large", large), ("small", small), ("resnet", resnet)):
        tfkd.export.to_tflite(model, folder / f"{name}.tflite", batch_size=None)
        tfkd.export.to_onnx(model, folder / f"{name}.onnx")
        model.save(folder / f"{name}.keras")
    tfkd.export.to_saved_model(large, folder / "large_saved")


def example(port: Any, count: int, seed: int = 0) -> np.ndarray:
    """Noise for an input; numbers of words for a text."""
    rng, shape = np.random.default_rng(seed), (count, *port.shape[1:])
    if port.dtype.kind == "f":
        return rng.normal(size=shape).astype(port.dtype)
    return rng.integers(1, 2000, shape).astype(port.dtype)


class Bare:
    """The interpreter by hand."""

    def __init__(self, path: pathlib.Path):
        from ai_edge_litert import interpreter

        self.interpreter = interpreter.Interpreter(str(path), num_threads=1)
        self.interpreter.allocate_tensors()
        self.into = self.interpreter.get_input_details()[0]["index"]
        self.out = self.interpreter.get_output_details()[0]["index"]

    def resize(self, shape: tuple[int, ...]) -> None:
        self.interpreter.resize_tensor_input(self.into, shape)
        self.interpreter.allocate_tensors()

    def __call__(self, x: np.ndarray) -> np.ndarray:
        self.interpreter.set_tensor(self.into, x)
        self.interpreter.invoke()
        return self.interpreter.get_tensor(self.out)


def overhead(folder: pathlib.Path, args: Any) -> None:
    from tfkd import report
    from tfkd.runtime import Predictor

    print("\n| file | bare µs | Predictor | overhead | batch=8, alone | a kept result |")
    print("|---|---:|---:|---:|---:|---:|")
    for name in ("small", "resnet"):
        path = folder / f"{name}.tflite"
        plain, shared = Predictor(path), Predictor(path, batch=8)
        cached = Predictor(path, cache_size=10)
        x = example(plain.inputs[0], 1)
        runners = {"bare": Bare(path), "plain": plain, "shared": shared, "cached": cached}
        found = report.latency(runners, x, runs=args.rounds)
        bare, one, two, hit = (1e3 * found[key].p50 for key in runners)
        print(
            f"| {name} | {bare:.1f} | {one:.1f} | {100 * (one / bare - 1):.1f} % "
            f"| {two:.1f} ({100 * (two / bare - 1):.1f} %) | {hit:.2f} |"
        )


def child(path: str, store: str) -> None:
    """Opens a file and answers once; prints the seconds of it, imports not counted."""
    if path.endswith((".keras", "_saved")):
        import tensorflow  # noqa: F401
        import tf_keras

        tf_keras.layers  # noqa: B018  (it loads when it is first used)
    elif path.endswith(".onnx"):
        import onnxruntime  # noqa: F401
    else:
        import ai_edge_litert.compiled_model
        import ai_edge_litert.interpreter  # noqa: F401
    from tfkd.runtime import Predictor

    start = time.perf_counter()
    predictor = Predictor(path, artifacts_dir=store or None)
    predictor(example(predictor.inputs[0], 1))
    print(json.dumps(time.perf_counter() - start))
    predictor.close()


def start(folder: pathlib.Path, args: Any) -> None:
    print("\n| file | MB | no folder, ms | empty folder | second start | no folder / second |")
    print("|---|---:|---:|---:|---:|---:|")
    store = folder / "artefacts"
    for name in STARTS:
        path = folder / name
        taken: dict[str, list[float]] = {"none": [], "first": [], "second": []}
        for _ in range(args.starts):
            shutil.rmtree(store, ignore_errors=True)
            for kind, values in taken.items():
                where = "" if kind == "none" else str(store)
                command = [sys.executable, __file__, "--child", str(path), where]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                values.append(1e3 * float(done.stdout.strip().splitlines()[-1]))
        none, first, second = (statistics.median(values) for values in taken.values())
        files = [f for f in [path, *path.rglob("*")] if f.is_file()]
        size = sum(f.stat().st_size for f in files) / 1e6
        print(
            f"| {name} | {size:.1f} | {none:.0f} | {first:.0f} | {second:.0f} "
            f"| {none / second:.2f} |",
            flush=True,
        )


def memory() -> float:
    """Resident memory of this process in MB."""
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    return float("nan")


def clients(work: Any, seconds: float) -> list[int]:
    """Runs `work(client)` in 8 threads again and again; returns the calls of each."""
    end, calls = time.perf_counter() + seconds, [0] * CLIENTS

    def loop(client: int) -> None:
        while time.perf_counter() < end:
            work(client)
            calls[client] += 1

    threads = [threading.Thread(target=loop, args=(i,)) for i in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return calls


def hammer(path: pathlib.Path, args: Any) -> None:
    """8 threads with known answers."""
    from tfkd.runtime import Predictor

    predictor = Predictor(path, batch=args.batch, cache_size=16)
    x = example(predictor.inputs[0], 64)
    bare, want = Bare(path), []
    for row in x:
        bare.resize(row[None].shape)
        want.append(bare(row[None])[0])
    want, wrong = np.stack(want), [0] * CLIENTS
    rngs = [np.random.default_rng(i) for i in range(CLIENTS)]

    def work(client: int) -> None:
        rows = rngs[client].integers(0, 64, rngs[client].choice([1, 1, 1, 2, 5, 40]))
        wrong[client] += not np.allclose(predictor(x[rows]), want[rows], rtol=1e-3, atol=1e-3)

    clients(work, min(5.0, args.seconds))
    before = memory()
    calls = clients(work, args.seconds)
    print(
        f"\n{path.name}: {sum(calls)} calls of {CLIENTS} threads in {args.seconds:.0f} s, "
        f"{sum(wrong)} wrong; memory {before:.1f} MB before, {memory() - before:+.1f} MB after"
    )


def throughput(path: pathlib.Path, args: Any) -> None:
    """Examples a second: the interpreter by hand, and 8 clients; in turns."""
    from tfkd.runtime import Predictor

    bare = Bare(path)
    shared, plain = Predictor(path, batch=args.batch), Predictor(path)
    xs = {size: example(shared.inputs[0], size) for size in SIZES}
    rates: dict[Any, list[tuple[float, float]]] = {size: [] for size in SIZES}
    rates |= {"clients, batch": [], "clients, no batch": [], "one client, batch": []}
    for _ in range(5):
        for key, values in rates.items():
            begun, spent, count = time.perf_counter(), time.process_time(), 0
            if key in xs:
                bare.resize(xs[key].shape)
                while time.perf_counter() - begun < SLOT / 2:
                    bare(xs[key])
                    count += key
            elif key == "one client, batch":
                while time.perf_counter() - begun < SLOT / 2:
                    shared(xs[1])
                    count += 1
            else:
                predictor = shared if key == "clients, batch" else plain
                count = sum(clients(lambda _, p=predictor: p(xs[1]), SLOT))
            values.append(
                (count / (time.perf_counter() - begun), count / (time.process_time() - spent))
            )
    # Where other programs take the processor's time, the second column still compares.
    print(f"\n| {path.name} | examples/s | per second of processor time |\n|---|---:|---:|")
    found = {key: [statistics.median(v) for v in zip(*rates[key], strict=True)] for key in rates}
    best = [max(found[size][i] for size in SIZES) for i in (0, 1)]
    rows = {"bare, one at a time": found[1], "bare, best batch": best}
    rows |= {key: found[key] for key in found if key not in SIZES}
    for name, (wall, spent) in rows.items():
        print(
            f"| {name} | {wall:.0f} ({wall / best[0]:.2f}) | {spent:.0f} ({spent / best[1]:.2f}) |",
            flush=True,
        )


def threads(folder: pathlib.Path, args: Any) -> None:
    hammer(folder / "small.tflite", args)
    for name in ("small", "resnet"):
        throughput(folder / f"{name}.tflite", args)


def xla(folder: pathlib.Path, args: Any) -> None:
    from tfkd import report
    from tfkd.runtime import Predictor

    print("\n| file | examples | plain ms | jit_compile ms | ratio | opening ms | with jit |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for name in ("resnet", "small", "large"):
        opened, taken = {}, []
        for jit in (False, True):
            begun = time.perf_counter()
            opened[jit] = Predictor(folder / f"{name}.keras", jit_compile=jit)
            taken.append(1e3 * (time.perf_counter() - begun))
        for size in (1, 32):
            x = example(opened[False].inputs[0], size)
            runners = {"plain": opened[False], "jit": opened[True]}
            runs = max(args.rounds // (10 * size), 20)
            found = report.latency(runners, x, runs=runs, seconds=20, warmup=3)
            plain, jit = found["plain"].p50, found["jit"].p50
            print(
                f"| {name} | {size} | {plain:.2f} | {jit:.2f} | {plain / jit:.2f} "
                f"| {taken[0]:.0f} | {taken[1]:.0f} |",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--rounds", type=int, default=2000)
    parser.add_argument("--starts", type=int, default=5)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("saved_models/predictor"))
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(*args.child)
        return
    if not (args.out / "large_saved").is_dir():
        subprocess.run(
            [sys.executable, "-c", f"import predictor; predictor.write(predictor.pathlib.Path"
             f"({str(args.out.absolute())!r}))"],
            cwd=pathlib.Path(__file__).parent, check=True,
        )  # fmt: skip
    for part in args.parts:
        globals()[part](args.out, args)
    from tfkd import report

    print(f"\n{report.machine()}")


if __name__ == "__main__":
    main()
