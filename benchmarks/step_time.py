"""Time of a distillation step, ResNet-56 to ResNet-20, against a minimal step and Keras 3.

    python benchmarks/step_time.py --rounds 15 --json step_time.json

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

With --losses instead: tfkd.Distiller with each loss on class scores, beside soft targets.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import pathlib
import subprocess
import sys
import types

import harness

import tfkd

os.environ["KERAS_BACKEND"] = "tensorflow"

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
LOSSES = "loss: "  # variants of --losses
MEMORY = ("tfkd", "keras", "tfkd+feature", "keras+feature", "tfkd+bf16")  # in a process of its own


def of_keras_3(name, **modules):
    """The source of a module of tfkd.models, run with Keras 3 as `keras` and other modules."""
    spec = importlib.util.find_spec(f"tfkd.models.{name}")
    source = pathlib.Path(spec.origin).read_text()
    source = source.replace("import tf_keras as keras", "import keras")
    for other in modules:
        source = source.replace(f"from tfkd.models import {other}\n", "")
    module = types.ModuleType(f"{name}_of_keras_3")
    module.__dict__.update(modules)
    exec(compile(source, spec.origin, "exec"), module.__dict__)
    return module


def resnet_of_keras_3():
    """tfkd's own ResNet with the layers of Keras 3: the same network in both."""
    return of_keras_3("resnet", parts=of_keras_3("parts")).resnet


def iterator(batch):
    """One batch, again and again: the input pipeline costs nothing."""
    import numpy as np
    import tensorflow as tf

    rng = np.random.default_rng(0)
    x = rng.normal(size=(batch, 32, 32, 3)).astype("float32")
    y = rng.integers(0, 10, batch).astype("int32")
    return iter(tf.data.Dataset.from_tensors((x, y)).repeat())


def stepper(name, args):
    """A function that makes one step of a variant and waits for it."""
    import tensorflow as tf

    if name.startswith("keras"):
        import keras

        resnet = resnet_of_keras_3()
    else:
        import tf_keras as keras

        resnet = tfkd.models.resnet
    teacher, student = resnet(args.teacher_depth), resnet(args.student_depth)
    batches = iterator(args.batch)
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


def score_losses():
    """The losses on class scores that --losses times, by name."""
    kit = tfkd.losses
    return {
        "soft targets": kit.LogitsDistillation(4.0),
        "soft targets, standardized": kit.LogitsDistillation(2.0, standardize=True),
        "decoupled": kit.DecoupledDistillation(4.0),
        "decoupled, standardized": kit.DecoupledDistillation(2.0, standardize=True),
        "DIST": kit.PearsonDistillation(4.0),
        "WTTM": kit.TransformedTeacherMatching(5.0),
    }


def distiller_of(name, keras, teacher, student):
    if name.startswith(LOSSES):
        loss = score_losses()[name.removeprefix(LOSSES)]
        return tfkd.Distiller(teacher, student, loss, student_loss_weight=0.1)
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
    command = [sys.executable, __file__, *sys.argv[1:], f"--memory-of={name}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def print_peak():
    """VmHWM begins anew with a program; getrusage would hand on the parent's peak."""
    status = pathlib.Path("/proc/self/status").read_text()
    print(int(status.split("VmHWM:")[1].split()[0]) / 1024)


def parse():
    parser = harness.Parser(
        __doc__, rounds=1, steps=1, batch=4, teacher_depth=14, student_depth=8, no_memory=True
    )
    parser.add_argument("--rounds", type=int, default=15, help="turns of each variant")
    parser.add_argument("--steps", type=int, default=3, help="steps a turn")
    parser.add_argument("--batch", type=int, default=128, help="images a step")
    parser.add_argument("--teacher-depth", type=int, default=56, help="of a ResNet")
    parser.add_argument("--student-depth", type=int, default=20, help="of a ResNet")
    parser.add_argument("--no-memory", action="store_true", help="times alone")
    parser.add_argument("--xla", action="store_true", help="also Keras's default compilation")
    parser.add_argument("--losses", action="store_true", help="each loss on class scores instead")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    return parser.parse_args()


def ratios_of(ms):
    """What is compared; ms: medians by variant."""
    first, *others = ms
    if first.startswith(LOSSES):
        return {f"{name} / {first}": ms[name] / ms[first] for name in others}
    floor = ms["teacher"] + ms["student"]
    found = {
        "tfkd / (teacher + student)": ms["tfkd"] / floor,
        "bare / (teacher + student)": ms["bare"] / floor,
        "keras / tfkd, soft targets": ms["keras"] / ms["tfkd"],
        "keras / tfkd, with a feature loss": ms["keras+feature"] / ms["tfkd+feature"],
        "keras+feature / tfkd+folded": ms["keras+feature"] / ms["tfkd+folded"],
        "tfkd / tfkd+bf16": ms["tfkd"] / ms["tfkd+bf16"],
        "bare / tfkd": ms["bare"] / ms["tfkd"],
    }
    if "keras+auto" in ms:
        found["keras+auto / tfkd+feature"] = ms["keras+auto"] / ms["tfkd+feature"]
    return found


def main():
    args = parse()
    if args.memory_of:
        step = stepper(args.memory_of, args)
        for _ in range(10):
            step()
        return print_peak()
    variants = (*VARIANTS, "keras+auto") if args.xla else VARIANTS
    if args.losses:
        variants = [LOSSES + name for name in score_losses()]
    jobs = {name: stepper(name, args) for name in variants}
    times = harness.in_turns(jobs, args.rounds, args.steps, warmup=4)
    ms = harness.medians(times)
    measured = () if args.no_memory or args.losses else MEMORY
    memory = {name: peak_memory(name) for name in measured}
    rows = [
        [
            name,
            *(f"{v:.0f}" for v in (ms[name], min(one), max(one))),
            f"{memory[name]:.0f}" if name in memory else "",
        ]
        for name, one in times.items()
    ]
    text = harness.table(["variant", "ms a step (median)", "min", "max", "peak MiB"], rows)
    ratios = ratios_of(ms)
    digits = 3 if args.losses else 2
    rows = [[name, f"{ratio:.{digits}f}"] for name, ratio in ratios.items()]
    text += "\n" + harness.table(["ratio", ""], rows)
    harness.show(args, text, ms=ms, ratios=ratios, memory_mib=memory)


if __name__ == "__main__":
    main()
