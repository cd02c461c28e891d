"""A student on CIFAR-10 alone, distilled, and distilled from a bfloat16 teacher.

    python benchmarks/cifar_teacher.py --data cifar10.npz --out saved_models/cifar_teacher
    python benchmarks/distill_cifar.py --data cifar10.npz --teacher saved_models/cifar_teacher

Every arm sees the same batches in the same order, has the same initial weights
for a seed, and makes the same number of steps. Accuracy is that of the last
epoch. Each finished run is a JSON file in --out, and is not made again.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import statistics
import time

from cifar_teacher import BATCH, cosine_sgd, load

import tfkd

ARMS = ("alone", "distilled", "distilled, bfloat16 teacher")


def load_teacher(folder):
    record = json.loads((pathlib.Path(folder) / "teacher.json").read_text())
    teacher = tfkd.models.resnet(record["depth"])
    teacher.load_weights(str(pathlib.Path(folder) / "teacher.weights.h5"))
    return teacher, record


def train(arm, seed, args, data, teacher):
    """One run: returns a record with the accuracy of every epoch."""
    import tf_keras as keras

    x_train, y_train, x_test, y_test, scale = data
    keras.backend.clear_session()
    keras.utils.set_random_seed(seed)
    student = tfkd.models.resnet(args.depth, weight_decay=5e-4)
    steps = tfkd.data.steps_per_epoch(len(x_train), BATCH)
    train_data = tfkd.data.batches(
        x_train, y_train, BATCH, seed=seed, augment=tfkd.data.shift_and_flip(4), preprocess=scale
    )
    test_data = tfkd.data.eval_batches(x_test, y_test, 500, preprocess=scale)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    optimizer = cosine_sgd(steps * args.epochs, args.peak)
    if arm == "alone":
        model = student
    else:
        if "bfloat16" in arm:
            teacher = tfkd.frozen_copy(teacher, dtype="bfloat16", fold_batch_norm=True)
        model = tfkd.Distiller(
            teacher,
            student,
            tfkd.losses.LogitsDistillation(args.temperature),
            student_loss_weight=args.student_loss_weight,
        )
    model.compile(optimizer, loss, metrics=["accuracy"])
    student_scores = []

    def score(epoch, logs):
        logits = student.predict(test_data, verbose=0)
        student_scores.append(float((logits.argmax(1) == y_test).mean()))

    began = time.time()
    history = model.fit(
        train_data,
        steps_per_epoch=steps,
        epochs=args.epochs,
        verbose=0,
        callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=score)],
    )
    return {
        "arm": arm,
        "seed": seed,
        "test_accuracy": student_scores,
        "minutes": (time.time() - began) / 60,
        "history": {k: [float(v) for v in values] for k, values in history.history.items()},
    }


def table(records, teacher_record, args):
    lines = [
        f"Teacher ResNet-{teacher_record['depth']}, {teacher_record['epochs']} epochs: "
        f"{100 * teacher_record['test_accuracy_float32']:.2f} %.",
        "",
        f"| ResNet-{args.depth}, {args.images} images, {args.epochs} epochs "
        "| accuracy, mean ± sd (%) | seeds |",
        "|---|---:|---|",
    ]
    for arm in ARMS:
        last = [100 * r["test_accuracy"][-1] for r in records if r["arm"] == arm]
        if last:
            sd = statistics.stdev(last) if len(last) > 1 else float("nan")
            each = ", ".join(f"{v:.2f}" for v in last)
            lines.append(f"| {arm} | {statistics.mean(last):.2f} ± {sd:.2f} | {each} |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--teacher", default="saved_models/cifar_teacher")
    parser.add_argument("--out", default="saved_models/distill_cifar")
    parser.add_argument("--depth", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--peak", type=float, default=0.1)
    parser.add_argument("--temperature", type=float, default=4.0)
    parser.add_argument("--student-loss-weight", type=float, default=0.1)
    args = parser.parse_args()
    out = pathlib.Path(args.out)
    x_train, y_train, x_test, y_test, scale = load(args.data)
    # Of every class as many: files may be sorted by class.
    part = tfkd.data.Dataset(x_train, y_train, x_test, y_test).subset(train=args.images)
    data = (part.x_train, part.y_train, x_test, y_test, scale)
    teacher, teacher_record = load_teacher(args.teacher)
    records = []
    for seed in range(args.seeds):
        for arm in ARMS:
            path = out / f"{arm.replace(', ', '-').replace(' ', '-')}-{seed}.json"
            if not path.exists():
                tfkd.artifacts.write_json(path, train(arm, seed, args, data, teacher))
            records.append(json.loads(path.read_text()))
            print(table(records, teacher_record, args), flush=True)


if __name__ == "__main__":
    main()
