"""Benchmarks `tfkd.runtime.Predictor`: overhead, cache, start-up, threads, XLA.

    python benchmarks/predictor.py
    python benchmarks/predictor.py --parts overhead start

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
import functools
import json
import pathlib
import shutil
import statistics
import subprocess
import sys
import threading
import time
from typing import Any

import harness
import numpy as np

CLIENTS = 8
PARTS = ("overhead", "start", "threads", "xla")
SIZES = (1, 2, 4, 8, 16, 32, 64)
STARTS = ("large.tflite", "large.onnx", "small.onnx", "large.keras", "small.keras", "large_saved")


def write(folder: pathlib.Path, smallest: bool) -> None:
    """The files: a transformer of 18 million weights, a small one, ResNet-20."""
    import tfkd

    folder.mkdir(parents=True, exist_ok=True)
    text = tfkd.models.text_transformer
    small = text(2000, 4, max_length=48, layers=2, width=96, heads=4)
    large = small
    if not smallest:
        large = text(20000, 4, max_length=48, layers=6, width=384, heads=6)
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


def overhead(folder: pathlib.Path, args: Any) -> str:
    from tfkd.runtime import Predictor

    rows = []
    for name in ("small", "resnet"):
        path = folder / f"{name}.tflite"
        plain, shared = Predictor(path), Predictor(path, batch=8)
        cached = Predictor(path, cache_size=10)
        x = example(plain.inputs[0], 1)
        runners = {"bare": Bare(path), "plain": plain, "shared": shared, "cached": cached}
        jobs = {key: functools.partial(run, x) for key, run in runners.items()}
        found = harness.medians(harness.in_turns(jobs, args.rounds, warmup=10))
        bare, one, two, hit = (1e3 * found[key] for key in runners)
        more = [f"{100 * (each / bare - 1):.1f} %" for each in (one, two)]
        rows.append([name, f"{bare:.1f}", f"{one:.1f}", *more, f"{hit:.2f}"])
    head = ["file", "bare interpreter, µs", "Predictor, µs", "overhead", "`batch=8`, alone"]
    return harness.table([*head, "a kept result, µs"], rows)


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


def start(folder: pathlib.Path, args: Any) -> str:
    rows, store = [], folder / "artefacts"
    for name in args.files:
        path = folder / name
        taken: dict[str, list[float]] = {"none": [], "first": [], "second": []}
        for _ in range(args.starts):
            shutil.rmtree(store, ignore_errors=True)
            for kind, values in taken.items():
                where = "" if kind == "none" else str(store)
                command = [sys.executable, __file__, "--child", str(path), where]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                values.append(1e3 * float(done.stdout.strip().splitlines()[-1]))
        none, first, second = harness.medians(taken).values()
        files = [f for f in [path, *path.rglob("*")] if f.is_file()]
        size = sum(f.stat().st_size for f in files) / 1e6
        cells = [f"{ms:.0f}" for ms in (none, first, second)]
        ratios = [f"{ms / second:.1f}" for ms in (first, none)]
        rows.append([f"{name}, {size:.1f} MB", *cells, *ratios])
    head = ["opening and first answer, ms", "no folder", "first start, which fills it"]
    return harness.table([*head, "second start", "first / second", "no folder / second"], rows)


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


def hammer(path: pathlib.Path, args: Any) -> str:
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
    return (
        f"{path.name}: {sum(calls)} calls of {CLIENTS} threads in {args.seconds:.0f} s, "
        f"{sum(wrong)} wrong; memory {before:.1f} MB before, {memory() - before:+.1f} MB after\n"
    )


def throughput(path: pathlib.Path, args: Any) -> str:
    """Examples a second: the interpreter by hand, and 8 clients; in turns."""
    from tfkd.runtime import Predictor

    bare = Bare(path)
    shared, plain = Predictor(path, batch=args.batch), Predictor(path)
    xs = {size: example(shared.inputs[0], size) for size in SIZES}
    rates: dict[Any, list[tuple[float, float]]] = {size: [] for size in SIZES}
    rates |= {"clients, batch": [], "clients, no batch": [], "one client, batch": []}
    slot = min(1.0, args.seconds)
    for _ in range(min(5, args.starts)):
        for key, values in rates.items():
            begun, spent, count = time.perf_counter(), time.process_time(), 0
            if key in xs:
                bare.resize(xs[key].shape)
                while time.perf_counter() - begun < slot / 2:
                    bare(xs[key])
                    count += key
            elif key == "one client, batch":
                while time.perf_counter() - begun < slot / 2:
                    shared(xs[1])
                    count += 1
            else:
                predictor = shared if key == "clients, batch" else plain
                count = sum(clients(lambda _, p=predictor: p(xs[1]), slot))
            values.append(
                (count / (time.perf_counter() - begun), count / (time.process_time() - spent))
            )
    # Where other programs take the processor's time, the second column still compares.
    found = {key: [statistics.median(v) for v in zip(*rates[key], strict=True)] for key in rates}
    best = [max(found[size][i] for size in SIZES) for i in (0, 1)]
    rows = {"bare, one at a time": found[1], "bare, best batch": best}
    rows |= {key: found[key] for key in found if key not in SIZES}
    cells = [
        [name, f"{wall:.0f} ({wall / best[0]:.2f})", f"{spent:.0f} ({spent / best[1]:.2f})"]
        for name, (wall, spent) in rows.items()
    ]
    head = [path.name, "examples/s", "per second of processor time"]
    return harness.table(head, cells)


def threads(folder: pathlib.Path, args: Any) -> str:
    files = [folder / f"{name}.tflite" for name in ("small", "resnet")]
    return "\n".join([hammer(files[0], args), *(throughput(path, args) for path in files)])


def xla(folder: pathlib.Path, args: Any) -> str:
    from tfkd.runtime import Predictor

    rows = []
    for name in ("resnet", "small", "large"):
        opened, taken = {}, []
        for key, jit in (("plain", False), ("jit", True)):
            begun = time.perf_counter()
            opened[key] = Predictor(folder / f"{name}.keras", jit_compile=jit)
            taken.append(1e3 * (time.perf_counter() - begun))
        for size in (1, 32):
            x = example(opened["plain"].inputs[0], size)
            jobs = {key: functools.partial(run, x) for key, run in opened.items()}
            runs = max(args.rounds // (10 * size), min(20, args.rounds))
            plain, jit = harness.medians(harness.in_turns(jobs, runs, warmup=3)).values()
            cells = [f"{plain:.2f}", f"{jit:.2f}", f"{plain / jit:.2f}"]
            rows.append([name, size, *cells, *(f"{ms:.0f}" for ms in taken)])
    head = ["`.keras` file", "examples", "plain, ms", "jit_compile, ms", "plain / jit"]
    return harness.table([*head, "opening, ms", "with jit"], rows)


def main() -> None:
    parser = harness.Parser(
        __doc__, seconds=0.3, rounds=5, starts=1, files=["small.onnx", "small.keras"]
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what is run")
    parser.add_argument("--seconds", type=float, default=60.0, help="of the threads")
    parser.add_argument("--rounds", type=int, default=2000, help="runs of each file")
    parser.add_argument("--starts", type=int, default=5, help="of each file and kind")
    parser.add_argument("--files", nargs="+", choices=STARTS, default=STARTS, help="for start")
    parser.add_argument("--batch", type=int, default=32, help="of shared calls")
    parser.add_argument("--out", default="saved_models/predictor", help="folder of the files")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--write", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    out = pathlib.Path(args.out).absolute()
    if args.child:
        return child(*args.child)
    if args.write:
        return write(out, args.smallest)
    if not (out / "large_saved").is_dir():
        command = [sys.executable, __file__, "--write", f"--out={out}"]
        subprocess.run([*command, *(["--smallest"] if args.smallest else [])], check=True)
    harness.show(args, "\n".join(globals()[part](out, args) for part in args.parts))


if __name__ == "__main__":
    main()
