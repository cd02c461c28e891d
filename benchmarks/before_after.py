"""Benchmarks import, training step, calibration and export against an earlier commit.

    python benchmarks/before_after.py --before 43a7ac0 --rounds 9
    python benchmarks/before_after.py --smallest

Each checkout lives in a process of its own, and the two take turns, so that a
machine that speeds up or slows down does so for both; the figures are ratios of
medians. The earlier commit is laid out by `git worktree` in a temporary folder.

    import      `import tfkd` in a new process
    load        `import tfkd; tfkd.Distiller` in a new process: with TensorFlow
    step        a step of a Distiller, ResNet-20 to ResNet-8, batch 64
    fit         a first `fit` of eight steps: checks, tracing, steps
    calibrate   the ranges of a quantized ResNet-20 from 128 images
    to_tflite   a float file of ResNet-8, without `verify=`
"""

from __future__ import annotations

import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
STARTS = {"import": "import tfkd", "load": "import tfkd; tfkd.Distiller"}


class Jobs:
    """The work that is timed, in the process of one checkout."""

    def __init__(self, smallest: bool):
        import numpy as np
        import tensorflow as tf
        import tf_keras as keras

        import tfkd

        self.tfkd, self.keras = tfkd, keras
        self.batch, self.folder = 8 if smallest else 64, tempfile.mkdtemp()
        rng = np.random.default_rng(0)
        self.images = rng.normal(size=(2 * self.batch, 32, 32, 3)).astype("float32")
        self.labels = rng.integers(0, 10, 2 * self.batch)
        pair = self.images[: self.batch], self.labels[: self.batch].astype("int32")
        self.batches = iter(tf.data.Dataset.from_tensors(pair).repeat())
        self.distiller = self.new_distiller()
        self.step_function = self.distiller.make_train_function()
        self.quantized = tfkd.quantization.quantize(tfkd.models.resnet(20))
        self.small = tfkd.models.resnet(8)
        self.step()

    def new_distiller(self):
        tfkd, keras = self.tfkd, self.keras
        models = tfkd.models.resnet(20), tfkd.models.resnet(8)
        distiller = tfkd.Distiller(*models, tfkd.losses.LogitsDistillation(4.0))
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        distiller.compile("sgd", loss, metrics=["accuracy"])
        return distiller

    def step(self):
        for _ in range(4):
            logs = self.step_function(self.batches)
        float(logs["loss"])  # waits for the steps

    def fit(self):
        size = self.batch // 4
        self.new_distiller().fit(self.images, self.labels, batch_size=size, verbose=0)

    def calibrate(self):
        self.tfkd.quantization.calibrate(self.quantized, self.images)

    def to_tflite(self):
        self.tfkd.export.to_tflite(self.small, f"{self.folder}/small.tflite")


def serve(smallest: bool) -> None:
    """Runs the jobs that standard input names, and answers each with its seconds."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not be taken for an answer
    jobs = Jobs(smallest)
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        began = time.perf_counter()
        getattr(jobs, line.strip())()
        print(time.perf_counter() - began, file=answers, flush=True)


class Checkout:
    """One checkout and the process in which its jobs run."""

    def __init__(self, folder: pathlib.Path, smallest: bool):
        self.env = {**os.environ, "PYTHONPATH": str(folder), "TF_CPP_MIN_LOG_LEVEL": "3"}
        command = [sys.executable, __file__, "--serve", *(["--smallest"] if smallest else [])]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            command, env=self.env, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True
        )
        if self.process.stdout.readline() != "ready\n":
            raise RuntimeError(f"the jobs of {folder} do not start: run {' '.join(command)}")

    def seconds(self, job: str) -> float:
        if job in STARTS:
            began = time.perf_counter()
            command = [sys.executable, "-c", STARTS[job]]
            subprocess.run(command, env=self.env, check=True, capture_output=True, cwd="/")
            return time.perf_counter() - began
        print(job, file=self.process.stdin, flush=True)
        return float(self.process.stdout.readline())

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def measure(before: pathlib.Path, rounds: int, smallest: bool) -> dict[str, dict[str, float]]:
    """Median seconds of each job before and after, and their ratio."""
    names = [*STARTS, "step", "fit", "calibrate", "to_tflite"]
    sides = {"before": Checkout(before, smallest), "after": Checkout(ROOT, smallest)}
    times = {name: {side: [] for side in sides} for name in names}
    for number in range(rounds + 1):
        for name in names:
            for side, checkout in sides.items():
                seconds = checkout.seconds(name)
                if number:  # the first round warms up
                    times[name][side].append(seconds)
    for checkout in sides.values():
        checkout.close()
    result = {}
    for name, each in times.items():
        result[name] = {side: statistics.median(values) for side, values in each.items()}
        pairs = zip(each["after"], each["before"], strict=True)
        result[name]["ratio"] = statistics.median(a / b for a, b in pairs)
    return result


def main() -> None:
    if "--serve" in sys.argv:  # in the process of a checkout, whose own tfkd is imported
        return serve("--smallest" in sys.argv)
    import harness

    parser = harness.Parser(__doc__, rounds=1)
    parser.add_argument("--before", default="HEAD", help="a commit of this repository")
    parser.add_argument("--rounds", type=int, default=9, help="turns of each job")
    args = parser.parse_args()
    git = ["git", "-C", str(ROOT), "worktree"]
    with tempfile.TemporaryDirectory() as folder:
        before = pathlib.Path(folder, "before")
        command = [*git, "add", "--detach", str(before), args.before]
        subprocess.run(command, check=True, capture_output=True)
        try:
            result = measure(before, args.rounds, args.smallest)
        finally:
            subprocess.run([*git, "remove", "--force", str(before)], check=True)
    head = ["job", "before, s", "after, s", "after / before"]
    rows = []
    for name, row in result.items():
        cells = [f"{row[side]:.3f}" for side in ("before", "after")]
        rows.append([name, *cells, f"{row['ratio']:.2f}"])
    harness.show(args, harness.table(head, rows), seconds=result)


if __name__ == "__main__":
    main()
