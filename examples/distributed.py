"""Distributed distillation by several worker processes, on one machine or on many.

    python examples/distributed.py                                  # two workers, here
    python examples/distributed.py --kill-worker=1 --kill-at-step=30
    python examples/distributed.py --curriculum --decay=0.5 --workers=2

Started as above, this is a launcher: it starts `--workers` copies of itself, each with
a TF_CONFIG that names them all, connected over loopback. If one dies, the launcher
stops the others and restarts all of them, at most `--restarts` times; training resumes
from the last epoch that was backed up. `--kill-worker` demonstrates this.

With TF_CONFIG set, as on a cluster, this file is one worker: start it on every machine
with the same options and an `--out` that all machines share. The scheduler there
(Kubernetes, Slurm) restarts failed workers. See examples/DISTRIBUTED.md.

Steps of a worker:
  1. The chief (worker 0) trains and saves a teacher; the others wait for the file.
  2. Each worker runs the teacher on its part of the images: one shared TeacherCache.
  3. All train the student under MultiWorkerMirroredStrategy. A worker reads only its
     share of each batch; batches are a function of (seed, step), so that an epoch sees
     the same batches after a restart.
  4. Only the chief writes logs, the backup, the student and result.json.

The data are the bundled digits with 450 training images, as in examples/digits.py.
"""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from shared import FLAGS, flag, parse

flag("workers", 2, "processes to start")
flag("restarts", 3, "largest number of restarts")
flag("out", "saved_models/distributed", "folder that all workers share")
flag("epochs", 40, "passes for the student")
flag("teacher-epochs", 40, "passes for the teacher")
flag("batch-size", 32, "images per step, over all workers")
flag("units", 64, "units of the student's hidden layer")
flag("curriculum", False, "easy images first")
flag("decay", 0.0, "fraction of the student's units to decay and remove")
flag("wait", 600.0, "seconds to wait for the files of other workers")
flag("kill-worker", -1, "worker that dies, in the first attempt")
flag("kill-at-step", 30, "step after which it dies")
flag("attempt", 0, "set by the launcher: restarts so far")
parse()  # before TensorFlow is imported: --help answers at once

import tfkd  # before TensorFlow: selects Keras 2

# isort: split
import tensorflow as tf
import tf_keras as keras
from absl import logging

from tfkd import artifacts, checks, pruning, replicas, schedules
from tfkd.curriculum import Curriculum, difficulty

TEMPERATURE, STUDENT_WEIGHT, RATE = 4.0, 0.1, 1e-2
MEASURED = 50  # batches, and all-reduces, that are timed separately


# ------------------------------------------------------------------ the launcher


def launch(arguments: list[str]) -> int:
    """Starts the workers until all succeed; returns the number of restarts."""
    for attempt in range(FLAGS.restarts + 1):
        dead = watch(start(arguments, attempt))
        if dead is None:
            return attempt
        logs = pathlib.Path(FLAGS.out) / "workers"
        print(f"worker {dead} died (its errors: {logs / f'{dead}.txt'})", flush=True)
        if attempt < FLAGS.restarts:
            print("starting all workers again", flush=True)
    sys.exit(f"given up after {FLAGS.restarts} restarts")


def start(arguments: list[str], attempt: int) -> list[subprocess.Popen]:
    """Starts the workers, connected over loopback on free ports."""
    addresses = [f"localhost:{port}" for port in free_ports(FLAGS.workers)]
    threads = max((os.cpu_count() or 1) // FLAGS.workers, 1)
    folder = pathlib.Path(FLAGS.out) / "workers"
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for index in range(FLAGS.workers):
        task = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        environment = {
            "TF_NUM_INTRAOP_THREADS": str(threads),
            **os.environ,
            "TF_CONFIG": json.dumps(task),
        }
        command = [sys.executable, os.path.abspath(__file__), *arguments, f"--attempt={attempt}"]
        with (folder / f"{index}.txt").open("a") as errors:
            found.append(subprocess.Popen(command, env=environment, stderr=errors))
    return found


def free_ports(count: int) -> list[int]:
    """Distinct ports on which nothing listens."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("localhost", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def watch(workers: list[subprocess.Popen]) -> int | None:
    """Waits until all workers succeed; or until one dies, stops the others, and returns it.

    A worker whose peer died is blocked in an all-reduce, so it is killed, not terminated.
    """
    try:
        while any(worker.poll() is None for worker in workers):
            time.sleep(0.1)
            for index, worker in enumerate(workers):
                if worker.poll():
                    return index
        return next((index for index, worker in enumerate(workers) if worker.poll()), None)
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()


# -------------------------------------------------------------------- one worker


def work() -> None:
    """Trains as one of the workers that TF_CONFIG names."""
    strategy = tf.distribute.MultiWorkerMirroredStrategy()  # before any TensorFlow operation
    resolver = strategy.cluster_resolver
    index, count = resolver.task_id, strategy.num_replicas_in_sync
    workers = len(resolver.cluster_spec().as_dict()["worker"])
    out = pathlib.Path(FLAGS.out)
    out.mkdir(parents=True, exist_ok=True)
    chief = index == 0

    def say(text: str) -> None:
        if chief:
            print(f"[attempt {FLAGS.attempt}] {text}", flush=True)

    digits = tfkd.data.digits(test_fraction=0.75)
    teacher = the_teacher(out / "teacher.keras", digits, chief)
    if not chief:
        wait_for(out / "cache" / "cache.json")  # only one worker may create the cache
    cache = tfkd.TeacherCache.build(
        out / "cache", teacher, digits.x_train, preprocess=digits.preprocess,
        shard_size=-(-len(digits.x_train) // (4 * workers)), part=(index, workers),
        wait=FLAGS.wait, progress=False,
    )  # fmt: skip
    say(f"{count} replicas on {workers} workers; {cache}")
    train(strategy, digits, teacher, cache, out, say)


def the_teacher(path: pathlib.Path, digits: Any, chief: bool) -> Any:
    """The trained teacher: the chief writes the file, the others wait for it."""
    if chief and not path.exists():
        keras.utils.set_random_seed(0)
        model = tfkd.models.resnet(8, input_shape=digits.image_shape, widths=(16, 32))
        model.compile(keras.optimizers.Adam(5e-3), loss(), ["accuracy"])
        x = digits.preprocess(digits.x_train)
        model.fit(x, digits.y_train, 32, FLAGS.teacher_epochs, verbose=0)
        with artifacts.atomic_path(path) as temporary:
            model.save(temporary)
    wait_for(path)
    return keras.models.load_model(path, compile=False)


def wait_for(path: pathlib.Path) -> None:
    """Waits until the chief has written a file."""
    until = time.monotonic() + FLAGS.wait
    while not path.exists():
        if time.monotonic() > until:
            raise checks.value_error("out", "a folder that all workers share", str(FLAGS.out))
        time.sleep(0.2)


def loss() -> Any:
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def build(image_shape: tuple[int, ...], classes: int) -> keras.Model:
    """The student."""
    image = keras.Input(image_shape, name="image")
    flat = keras.layers.Flatten(name="flat")(image)
    hidden = keras.layers.Dense(FLAGS.units, "relu", name="hidden")(flat)
    return keras.Model(image, keras.layers.Dense(classes, name="logits")(hidden), name="student")


def train(strategy, digits, teacher, cache, out, say) -> None:
    """Trains the student from the last backup; evaluates, measures and saves it."""
    steps = tfkd.data.steps_per_epoch(len(digits.x_train), FLAGS.batch_size)
    done = finished_epochs(out / "backup")
    if done:
        say(f"resuming after {done} epochs")
    keras.utils.set_random_seed(1)
    with strategy.scope():
        student = build(digits.image_shape, digits.num_classes)
        soft = tfkd.losses.LogitsDistillation(TEMPERATURE)
        distiller = tfkd.Distiller(cache, student, soft, student_loss_weight=STUDENT_WEIGHT)
        rate = keras.optimizers.schedules.CosineDecay(RATE, steps * FLAGS.epochs)
        distiller.compile(keras.optimizers.Adam(rate), loss(), ["accuracy"])
    make, paced = shares(digits, teacher, cache, steps, done * steps)
    times, decay = StepTimes(steps), decay_of(student, steps)
    distiller.fit(
        replicas.distributed(make, FLAGS.batch_size, strategy),
        steps_per_epoch=steps,
        epochs=FLAGS.epochs,
        callbacks=[times, *callbacks(out, decay, paced, done * steps)],
        verbose=0,
    )
    test = tfkd.data.eval_batches(digits.x_test, digits.y_test, 256, preprocess=digits.preprocess)
    accuracy = 100 * distiller.evaluate(test, verbose=0, return_dict=True)["accuracy"]
    measured = {"step": times.median, "input": input_time(make, strategy)}
    measured["all-reduce"] = exchange_time(strategy, student.trainable_variables)
    save(student if decay is None else pruning.shrink(student, decay.selection), out)
    if replicas.writes(distiller):
        result = {"accuracy": accuracy, "replicas": strategy.num_replicas_in_sync}
        artifacts.write_json(out / "result.json", {**result, "milliseconds": measured})


def shares(digits, teacher, cache, steps, start_step):
    """The function that makes a worker's share of each batch from a step on; the curriculum."""
    x, y, batch = digits.x_train, digits.y_train, FLAGS.batch_size
    if not FLAGS.curriculum:
        return lambda context: cache.batches(
            x, y, batch, preprocess=digits.preprocess, start_step=start_step, input_context=context
        ), None
    scores = difficulty.teacher_loss(teacher, x, y, preprocess=digits.preprocess, progress=False)
    pace = schedules.Root(0.4, 1.0, end_step=steps * FLAGS.epochs // 2)
    attach = cache.attach(preprocess=digits.preprocess)
    paced = Curriculum((cache.keyed(x), y), scores, pace, batch, preprocess=attach)
    return lambda context: paced.batches(start_step, context), paced


def finished_epochs(folder: pathlib.Path) -> int:
    """Number of finished epochs of the backup, from which the data continue."""
    latest = tf.train.latest_checkpoint(str(folder / "chief"))
    if latest is None:
        return 0
    reader = tf.train.load_checkpoint(latest)
    return int(reader.get_tensor("ckpt_saved_epoch/.ATTRIBUTES/VARIABLE_VALUE")) + 1


def decay_of(student: keras.Model, steps: int) -> Any:
    """Filter decay of the least important units during the first half of the training."""
    if not FLAGS.decay:
        return None
    end = max(steps * FLAGS.epochs // 2, 1)
    schedule = pruning.AnnealedFilterDecay(FLAGS.decay, 0, end, frequency=steps)
    plan = pruning.plan(student, filter_rate=FLAGS.decay)
    return tfkd.callbacks.FilterDecay(plan, schedule, log_dir=str(pathlib.Path(FLAGS.out, "logs")))


def callbacks(out: pathlib.Path, decay: Any, paced: Any, start_step: int) -> list[Any]:
    """Callbacks: decay, curriculum, logs, backup, and the simulated death of a worker."""
    found: list[Any] = [] if decay is None else [DecayState(decay, out / "decay"), decay]
    logs = str(out / "logs")
    if paced is not None:
        update = tfkd.callbacks.CurriculumUpdate(paced, start_step=start_step, log_dir=logs)
        found.append(update)
    found.append(tfkd.callbacks.TensorBoard(logs, write_graph=False))
    # After all callbacks that change the model at the end of an epoch.
    found.append(keras.callbacks.BackupAndRestore(str(out / "backup"), save_freq="epoch"))
    task = json.loads(os.environ["TF_CONFIG"])["task"]
    if task["index"] == FLAGS.kill_worker and not FLAGS.attempt:
        found.append(Dies(FLAGS.kill_at_step))
    return found


class Dies(keras.callbacks.Callback):
    """Ends the process without cleanup, as a power failure would."""

    def __init__(self, step: int):
        super().__init__()
        self.left = step

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.left -= 1
        if not self.left:
            os._exit(1)


class DecayState(keras.callbacks.Callback):
    """Saves the state of a FilterDecay beside the backup, which holds only weights.

    One file per epoch, named by the step, so that the one of the backup is found.
    """

    def __init__(self, decay: Any, folder: pathlib.Path):
        super().__init__()
        self.decay, self.folder = decay, folder

    def path(self) -> pathlib.Path:
        return self.folder / f"{self.model.optimizer.iterations.numpy()}.json"

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        if self.decay.selection.count == 0 and self.path().exists():
            self.decay.load_state_dict(json.loads(self.path().read_text()))

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if replicas.writes(self.model):
            artifacts.write_json(self.path(), self.decay.state_dict())


# ----------------------------------------------------------------- what it costs


class StepTimes(keras.callbacks.Callback):
    """Milliseconds per step: the median over epochs except the first, which traces."""

    def __init__(self, steps: int):
        super().__init__()
        self.steps, self.found, self.began = steps, [], 0.0

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.began = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.found.append((time.perf_counter() - self.began) / self.steps * 1e3)

    @property
    def median(self) -> float:
        return statistics.median(self.found[1:] or self.found or [0.0])


def input_time(make: Any, strategy: Any) -> float:
    """Milliseconds to load a worker's share of a batch with the teacher's outputs."""
    index, count = strategy.cluster_resolver.task_id, strategy.num_replicas_in_sync
    batches = iter(make(tf.distribute.InputContext(count, index, count)))
    return timed(lambda: next(batches))


def exchange_time(strategy: Any, variables: list[Any]) -> float:
    """Milliseconds to all-reduce gradients of these variables over all workers."""

    def add_up():
        gradients = [tf.ones(variable.shape) for variable in variables]
        context = tf.distribute.get_replica_context()
        return context.all_reduce(tf.distribute.ReduceOp.SUM, gradients)

    exchange = tf.function(lambda: strategy.run(add_up))
    return timed(exchange)


def timed(function: Any) -> float:
    """Milliseconds per call: the mean of many calls after a warm-up."""
    for _ in range(10):  # traces, and consumes prefetched elements
        function()
    began = time.perf_counter()
    for _ in range(MEASURED):
        function()
    return (time.perf_counter() - began) / MEASURED * 1e3


def save(student: keras.Model, out: pathlib.Path) -> None:
    """Saves the student; workers other than the chief write to a temporary folder.

    They must take part, since reading a variable may be a collective operation.
    """
    if json.loads(os.environ["TF_CONFIG"])["task"]["index"] == 0:
        with artifacts.atomic_path(out / "student.keras") as path:
            student.save(path)
    else:
        with tempfile.TemporaryDirectory() as folder:
            student.save(pathlib.Path(folder) / "student.keras")


def main() -> None:
    logging.set_verbosity(logging.ERROR)
    checks.positive_int("workers", FLAGS.workers)
    if "TF_CONFIG" in os.environ:
        work()
        return
    began = time.monotonic()
    out = pathlib.Path(FLAGS.out)
    for name in ("backup", "decay", "logs", "workers"):  # of an earlier run
        shutil.rmtree(out / name, ignore_errors=True)
    restarts = launch(sys.argv[1:])
    result = json.loads((out / "result.json").read_text())
    print(f"accuracy {result['accuracy']:.1f} % on images that were held back")
    print(f"{restarts} restarts, {time.monotonic() - began:.0f} s in all")
    times = result["milliseconds"]
    rest = max(times["step"] - times["input"] - times["all-reduce"], 0.0)
    print(
        f"a step: {times['step']:.1f} ms; separately, its input takes {times['input']:.1f} ms "
        f"(prefetched) and the all-reduce of its gradients {times['all-reduce']:.1f} ms; the rest, "
        f"{rest:.1f} ms or more, is computation, metrics and waiting"
    )
    print(f"the student, the logs and result.json are in {out}")


if __name__ == "__main__":
    main()
