"""Time of a distillation step, ResNet-56 to ResNet-20, against a minimal step and Keras 3.

    python benchmarks/step_time.py [--rounds 15] [--json step_time.json]

All variants live in one process and take turns, a few steps each, so that a
machine that speeds up or slows down does so for all; the figures are ratios of
medians. Peak memory is measured in a process of its own for each variant.

Variants, batch 128 of 32×32×3 images:
  teacher       forward pass of the teacher alone
  student       plain `fit` step of the student alone
  bare          a hand-written distillation step (the least one can write)
  tfkd          tfkd.Distiller, soft targets
  tfkd+feature  tfkd.Distiller, soft targets and one feature loss
  tfkd+folded   soft targets and feature loss, teacher by frozen_copy(fold_batch_norm=True)
  tfkd+bf16     soft targets, teacher by frozen_copy(dtype="bfloat16", fold_batch_norm=True)
  keras         keras.distillation.Distiller (Keras 3, TensorFlow), soft targets
  keras+feature the same with one feature loss
With --xla also
  keras+auto    keras+feature as Keras compiles it by default (XLA)
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import pathlib
import statistics
import subprocess
import sys
import time
import types

import tfkd

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ["KERAS_BACKEND"] = "tensorflow"

BATCH = 128
VARIANTS = (
    "teacher",
    "student",
    "bare",
    "tfkd",
    "tfkd+feature",
    "tfkd+folded",
    "tfkd+bf16",
    "keras",
    "keras+feature",
)


def resnet_of_keras_3():
    """tfkd's own ResNet source, with Keras 3 as `keras`: the same network in both."""
    spec = importlib.util.find_spec("tfkd.models.resnet")
    source = (
        pathlib.Path(spec.origin).read_text().replace("import tf_keras as keras", "import keras")
    )
    module = types.ModuleType("resnet_of_keras_3")
    exec(compile(source, spec.origin, "exec"), module.__dict__)
    return module.resnet


def iterator():
    """One batch, again and again: the input pipeline costs nothing."""
    import numpy as np
    import tensorflow as tf

    rng = np.random.default_rng(0)
    x = rng.normal(size=(BATCH, 32, 32, 3)).astype("float32")
    y = rng.integers(0, 10, BATCH).astype("int32")
    return iter(tf.data.Dataset.from_tensors((x, y)).repeat())


def stepper(name):
    """A function that makes one step of a variant and waits for it."""
    import tensorflow as tf

    if name.startswith("keras"):
        import keras

        resnet = resnet_of_keras_3()
    else:
        import tf_keras as keras

        resnet = tfkd.models.resnet
    teacher, student = resnet(56), resnet(20)
    batches = iterator()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    optimizer = keras.optimizers.SGD(0.01, momentum=0.9)

    if name == "teacher":
        forward = tf.function(lambda x: teacher(x, training=False))
        return lambda: forward(next(batches)[0]).numpy()
    if name == "bare":
        return bare_step(teacher, student, optimizer, batches)
    model = student if name == "student" else distiller_of(name, keras, teacher, student)
    # Keras 3 would choose XLA, whose convolutions on processors are several times slower.
    model.compile(optimizer, loss, jit_compile="auto" if name == "keras+auto" else False)
    function = model.make_train_function() or model.train_function

    def step():
        logs = function(batches)
        # Reading one number waits for the step.
        return float(tf.nest.flatten(logs)[0])

    return step


def distiller_of(name, keras, teacher, student):
    layers = {"teacher_layer_name": "stage3", "student_layer_name": "stage3"}
    if name.startswith("keras"):
        kit = keras.distillation
        # Its default string loss applies neither softmax nor T²: an instance does.
        logits = kit.LogitsDistillation(4.0, loss=keras.losses.KLDivergence())
        distiller = kit.Distiller
    else:
        kit, distiller = tfkd.losses, tfkd.Distiller
        logits = kit.LogitsDistillation(4.0)
    losses = [logits]
    if name.endswith(("+feature", "+folded", "+auto")):
        losses.append(kit.FeatureDistillation(**layers))
    if name.endswith(("+folded", "+bf16")):
        dtype = "bfloat16" if name.endswith("+bf16") else None
        teacher = tfkd.frozen_copy(teacher, dtype=dtype, fold_batch_norm=True)
    return distiller(teacher, student, losses, student_loss_weight=0.1)


def bare_step(teacher, student, optimizer, batches):
    """Teacher, student, soft targets and update in one function, without metrics."""
    import tensorflow as tf

    @tf.function
    def step(x, y):
        soft = tf.nn.softmax(teacher(x, training=False) / 4.0)
        with tf.GradientTape() as tape:
            z = student(x, training=True)
            hard = tf.nn.sparse_softmax_cross_entropy_with_logits(y, z)
            kd = 16.0 * tf.nn.softmax_cross_entropy_with_logits(soft, z / 4.0)
            loss = tf.reduce_mean(0.1 * hard + 0.9 * kd) + tf.add_n(student.losses)
        optimizer.minimize(loss, student.trainable_variables, tape=tape)
        return loss

    return lambda: float(step(*next(batches)))


def peak_memory(name):
    """Peak resident memory in MiB of a process that makes ten steps of a variant."""
    code = (
        f"import step_time as s; f = s.stepper({name!r}); [f() for _ in range(10)]; s.print_peak()"
    )
    here = pathlib.Path(__file__).parent
    paths = [str(here), str(here.parent), os.environ.get("PYTHONPATH", "")]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
    )
    return float(done.stdout.split()[-1])


def print_peak():
    """VmHWM begins anew with a program; getrusage would hand on the parent's peak."""
    status = pathlib.Path("/proc/self/status").read_text()
    print(int(status.split("VmHWM:")[1].split()[0]) / 1024)


def measure(variants, rounds, steps):
    """Milliseconds a step: every round gives each variant its turn."""
    functions = {name: stepper(name) for name in variants}
    for function in functions.values():
        for _ in range(4):
            function()
    times = {name: [] for name in variants}
    for _ in range(rounds):
        for name, function in functions.items():
            began = time.perf_counter()
            for _ in range(steps):
                function()
            times[name].append((time.perf_counter() - began) / steps * 1e3)
    return times


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--json")
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--xla", action="store_true")
    args = parser.parse_args()
    variants = (*VARIANTS, "keras+auto") if args.xla else VARIANTS
    times = measure(variants, args.rounds, args.steps)
    ms = {name: statistics.median(values) for name, values in times.items()}
    floor = ms["teacher"] + ms["student"]
    ratios = {
        "tfkd / (teacher + student)": ms["tfkd"] / floor,
        "bare / (teacher + student)": ms["bare"] / floor,
        "keras / tfkd, soft targets": ms["keras"] / ms["tfkd"],
        "keras / tfkd, with a feature loss": ms["keras+feature"] / ms["tfkd+feature"],
        "keras+feature / tfkd+folded": ms["keras+feature"] / ms["tfkd+folded"],
        "tfkd / tfkd+bf16": ms["tfkd"] / ms["tfkd+bf16"],
        "bare / tfkd": ms["bare"] / ms["tfkd"],
    }
    if args.xla:
        ratios["keras+auto / tfkd+feature"] = ms["keras+auto"] / ms["tfkd+feature"]
    memory = (
        {}
        if args.no_memory
        else {
            name: peak_memory(name)
            for name in ("tfkd", "keras", "tfkd+feature", "keras+feature", "tfkd+bf16")
        }
    )
    print("| variant | ms a step (median) | min | max | peak MiB |\n|---|---:|---:|---:|---:|")
    for name, values in times.items():
        peak = f"{memory[name]:.0f}" if name in memory else ""
        print(f"| {name} | {ms[name]:.0f} | {min(values):.0f} | {max(values):.0f} | {peak} |")
    for label, ratio in ratios.items():
        print(f"{label}: {ratio:.2f}")
    if args.json:
        record = {"ms": ms, "ratios": ratios, "memory_mib": memory, "rounds": args.rounds}
        tfkd.artifacts.write_json(args.json, record)


if __name__ == "__main__":
    main()
