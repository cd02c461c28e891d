"""Cost of distributed training: computation, input and communication; with a scaling model.

    python benchmarks/distributed_cost.py --steps 20 --rounds 5
    python benchmarks/distributed_cost.py --models "ResNet-20, batch 128"

A ResNet-20 on random 32×32×3 images, with batches whose step is short and 0.2 s or more,
and a text MLP on random tokens, all distilled from a TeacherCache. Each worker has the same
batch whatever their number, one thread, and one processor to itself: on a machine with two,
two workers share nothing but memory. Throughput is examples a second of all workers.

Measured, in milliseconds, medians over --rounds of --steps steps:
  one process   a step of `fit`, without a strategy
  two workers   a step of `fit` under MultiWorkerMirroredStrategy over loopback
  input         to make a worker's share of a batch, cache lookup included, by iterating
                over the data alone (in training it is made ahead, beside the step)
  all-reduce    to add up tensors of the sizes of the gradients that are added up, alone
  one number    to add up a single number: two hops

Counted, in the graph of a step and the shapes of the weights:
  B  bytes that are added up: all trainable variables but tables of embeddings
  r  all-reduces: one for the gradients, others for losses and metrics
  G  bytes that are gathered: the gradient of an embedding is a list of rows, one for each
     token of a worker's batch, and TensorFlow hands every worker the rows of all others
  g  all-gathers, for these

On paper (distributed_tables.py), for n workers with bandwidth W and latency L a hop: in a
ring each worker sends 2 (n − 1) / n of what is added up in 2 (n − 1) hops, one after
another, and n − 1 times what is gathered in n − 1 hops:

    t(n) = compute + max(0, (2 (n − 1) / n · B + (n − 1) · G) / W
                            + (2 r + g) (n − 1) · L)

with the step of one process as compute, and the efficiency compute / t(n). Nothing
overlaps in this formula, no switch is shared, no worker is late, and rings are all there
is: where trees are used (NCCL), hops grow with log n and not with n. "Gradients alone"
is the same with one all-reduce, and no gathers but those of G.

How good the formula is shows at two workers: L of the loopback is half the time of one
number, W is B / (all-reduce − one number), and t(2) with both stands beside the measured
step. What two workers take beyond it (waiting for the slower one, sharing the memory, the
strategy itself) is the same at any n if it does not come from hops: the rows "all, and the
rest" add it to each step.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import harness
import numpy as np
from distributed_tables import tables

import tfkd

# Name → examples a step of each worker.
MODELS = {"ResNet-20": 32, "ResNet-20, batch 128": 128, "text MLP": 64}
VOCABULARY, LENGTH, EXAMPLES = 8_000, 64, 512


def data_of(name: str, folder: pathlib.Path) -> tuple[Any, Any, Any]:
    """Random inputs and labels, and a cache of random scores for them."""
    random = np.random.default_rng(0)
    if name.startswith("ResNet"):
        x = random.integers(0, 256, (EXAMPLES, 32, 32, 3), dtype=np.uint8)
        classes = 10
    else:
        x = random.integers(1, VOCABULARY, (EXAMPLES, LENGTH), dtype=np.int32)
        classes = 2
    y = random.integers(0, classes, EXAMPLES).astype(np.int32)
    scores = random.normal(size=(EXAMPLES, classes))
    cache = tfkd.TeacherCache.from_predictions(folder, scores, x, source="random numbers")
    return x, y, cache


def student_of(name: str) -> Any:
    if name.startswith("ResNet"):
        return tfkd.models.resnet(20)
    return tfkd.models.text_mlp(VOCABULARY, 2, LENGTH)


def scaled(x, y):
    """Pixels as floats, behind the cache: predictions know of no preprocessing."""
    import tensorflow as tf

    from tfkd.teachers.precomputed import INPUTS

    return {**x, INPUTS: tf.cast(x[INPUTS], tf.float32) / 255.0}, y


def measure(name: str, steps: int, rounds: int) -> dict[str, Any]:
    """All figures of one model, in this process, which TF_CONFIG may make one of several."""
    import tensorflow as tf
    import tf_keras as keras

    from tfkd import replicas

    several = "TF_CONFIG" in os.environ
    strategy = tf.distribute.MultiWorkerMirroredStrategy() if several else None
    strategy = strategy or tf.distribute.get_strategy()
    count = strategy.num_replicas_in_sync
    batch = MODELS[name] * count
    with tempfile.TemporaryDirectory() as folder:
        x, y, cache = data_of(name, pathlib.Path(folder))
        with strategy.scope():
            soft = tfkd.losses.LogitsDistillation(4.0)
            model = tfkd.Distiller(cache, student_of(name), soft, student_loss_weight=0.1)
            loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
            model.compile(keras.optimizers.SGD(0.01, 0.9), loss, ["accuracy"])

        def make(context):
            batches = cache.batches(x, y, batch, input_context=context)
            return batches.map(scaled, num_parallel_calls=2) if x.ndim > 2 else batches

        times = Times(steps)
        data = replicas.distributed(make, batch, strategy)
        model.fit(
            data, steps_per_epoch=steps, epochs=rounds + 1, verbose=0, callbacks=[times.callback()]
        )
        variables = model.student.trainable_variables
        tables = [v for v in variables if "embeddings" in v.name]
        dense = [v for v in variables if not any(v is table for table in tables)]
        found = {
            "step": statistics.median(times.found[1:]),
            "bytes": sum(v.dtype.size * v.shape.num_elements() for v in dense),
            "gathered": sum(MODELS[name] * LENGTH * (4 * v.shape[-1] + 8) for v in tables),
            "input": input_time(make, steps, rounds),
            **collectives(model, data),
        }
        if several:
            found["all-reduce"] = exchange_time(strategy, dense, steps, rounds)
            found["one number"] = exchange_time(strategy, [tf.zeros(())], steps, rounds)
    return found


def task_index() -> int:
    return json.loads(os.environ.get("TF_CONFIG", "{}")).get("task", {}).get("index", 0)


class Times:
    """Milliseconds a step, one figure an epoch."""

    def __init__(self, steps: int):
        self.steps, self.found, self.began = steps, [], 0.0

    def callback(self) -> Any:
        import tf_keras as keras

        return keras.callbacks.LambdaCallback(
            on_epoch_begin=lambda *_: self.start(), on_epoch_end=lambda *_: self.stop()
        )

    def start(self) -> None:
        self.began = time.perf_counter()

    def stop(self) -> None:
        self.found.append((time.perf_counter() - self.began) / self.steps * 1e3)


def median_time(function: Any, steps: int, rounds: int) -> float:
    """Milliseconds a call: the median over rounds, after one that does not count."""
    times = Times(steps)
    for _ in range(rounds + 1):
        times.start()
        for _ in range(steps):
            function()
        times.stop()
    return statistics.median(times.found[1:])


def input_time(make: Any, steps: int, rounds: int) -> float:
    import tensorflow as tf

    index = task_index()
    count = 2 if "TF_CONFIG" in os.environ else 1
    batches = iter(make(tf.distribute.InputContext(count, index, count)))
    return median_time(lambda: next(batches), steps, rounds)


def exchange_time(strategy: Any, variables: list[Any], steps: int, rounds: int) -> float:
    import tensorflow as tf

    def add_up():
        gradients = [tf.ones(variable.shape) for variable in variables]
        context = tf.distribute.get_replica_context()
        return context.all_reduce(tf.distribute.ReduceOp.SUM, gradients)

    return median_time(tf.function(lambda: strategy.run(add_up)), steps, rounds)


def collectives(model: Any, data: Any) -> dict[str, int]:
    """All-reduces and all-gathers in the graph of a training step."""
    function = model.train_tf_function or model.train_function
    graph = function.get_concrete_function(iter(data)).graph.as_graph_def()
    nodes = [*graph.node, *(node for one in graph.library.function for node in one.node_def)]
    kinds = {"reduces": "CollectiveReduce", "gathers": "CollectiveGather"}
    return {kind: sum(node.op.startswith(op) for node in nodes) for kind, op in kinds.items()}


def run(name: str, count: int, steps: int, rounds: int) -> dict[str, Any]:
    """The figures of worker 0 of `count` processes."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("localhost", 0))
    addresses = [f"localhost:{one.getsockname()[1]}" for one in sockets]
    for one in sockets:
        one.close()
    options = [f"--worker={name}", f"--steps={steps}", f"--rounds={rounds}"]
    processes = []
    for index in range(count):
        environment = dict(os.environ)
        if count > 1:
            task = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
            environment["TF_CONFIG"] = json.dumps(task)
        command = [sys.executable, os.path.abspath(__file__), *options]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
        processes.append(subprocess.Popen(command, env=environment, **pipes))
    outputs = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        sys.exit(f"a worker failed: {outputs}; run it with --worker={name!r} to see why")
    return json.loads(outputs[0].splitlines()[-1])


def main() -> None:
    parser = harness.Parser(__doc__, steps=2, rounds=1, models=["ResNet-20", "text MLP"])
    parser.add_argument("--steps", type=int, default=20, help="of a round")
    parser.add_argument("--rounds", type=int, default=5, help="of which the median is taken")
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        if hasattr(os, "sched_setaffinity"):  # before TensorFlow makes its threads
            processors = sorted(os.sched_getaffinity(0))
            os.sched_setaffinity(0, {processors[task_index() % len(processors)]})
        print(json.dumps(measure(args.worker, args.steps, args.rounds)), flush=True)
        return
    found = {}
    for name in args.models:
        one, two = (run(name, count, args.steps, args.rounds) for count in (1, 2))
        found[name] = {**two, "batch": MODELS[name], "one": one["step"], "two": two["step"]}
    harness.show(args, tables(found), found=found)


if __name__ == "__main__":
    main()
