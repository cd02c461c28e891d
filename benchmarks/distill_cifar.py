"""A student on CIFAR-10 alone, distilled, and distilled from a bfloat16 teacher.

    python benchmarks/cifar_teacher.py --data cifar10.npz --out saved_models/cifar_teacher
    python benchmarks/distill_cifar.py --data cifar10.npz --teacher saved_models/cifar_teacher

Every arm sees the same batches in the same order, has the same initial weights
for a seed, and makes the same number of steps. Accuracy is that of the last
epoch. Each finished run is a record in --out, and is not made again.
"""

from __future__ import annotations

import functools

import harness
import made_up
from cifar_teacher import BATCH, cosine_sgd, load, load_base, weights_of

import tfkd

ARMS = ("alone", "distilled", "distilled, bfloat16 teacher")


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
        "history": {k: [float(v) for v in values] for k, values in history.history.items()},
    }


def table(records, args):
    rows = []
    for arm in ARMS:
        last = [100 * r["test_accuracy"][-1] for r in records if r["arm"] == arm]
        if last:
            rows.append([arm, harness.spread(last), ", ".join(f"{value:.2f}" for value in last)])
    what = f"ResNet-{args.depth}, {args.images} images, {args.epochs} epochs"
    return harness.table([what, "accuracy %", "seeds"], rows)


def main():
    parser = harness.Parser(
        __doc__, "saved_models/distill_cifar", data=made_up.cifar, teacher=made_up.base,
        images=256, epochs=1, seeds=1,
    )  # fmt: skip
    parser.add_argument("--data", help="cifar10.npz")
    parser.add_argument("--teacher", default="saved_models/cifar_teacher", help="its folder")
    parser.add_argument("--depth", type=int, default=8, help="of the student, a ResNet")
    parser.add_argument("--epochs", type=int, default=6, help="passes of a student")
    parser.add_argument("--seeds", type=int, default=3, help="students of each arm")
    parser.add_argument("--images", type=int, default=20_000, help="training images")
    parser.add_argument("--peak", type=float, default=0.1, help="of the learning rate")
    parser.add_argument("--temperature", type=float, default=4.0, help="of the soft targets")
    parser.add_argument("--student-loss-weight", type=float, default=0.1, help="of the labels")
    args = parser.parse_args()
    data = teacher = None
    digests = {}
    if not args.table:
        x_train, y_train, x_test, y_test, scale = load(args.data)
        # Of every class as many: files may be sorted by class.
        part = tfkd.data.Dataset(x_train, y_train, x_test, y_test).subset(train=args.images)
        data = (part.x_train, part.y_train, x_test, y_test, scale)
        teacher, about = load_base(args.teacher)
        print(f"teacher ResNet-{about['depth']}: {100 * about['test_accuracy_float32']:.2f} %")
        digests = {
            "images": harness.digest(args.data),
            "teacher": harness.digest(weights_of(args.teacher)),
        }
    store, records = harness.Records(args, **digests), []
    for seed in range(args.seeds):
        for arm in ARMS:
            run = {**harness.settings(args, "seeds", "teacher"), "arm": arm, "seed": seed}
            make = functools.partial(train, arm, seed, args, data, teacher)
            if record := store.run(f"{arm}-{seed}", run, make):
                records.append(record)
    harness.show(args, table(records, args), records=records)


if __name__ == "__main__":
    main()
