"""Trains the CIFAR-10 teacher that the other benchmarks distil from.

    python benchmarks/cifar_teacher.py --data cifar10.npz --out saved_models/cifar_teacher

One cosine cycle of SGD with Nesterov momentum, crop and mirror, weight decay
5e-4; by default bfloat16 activations with float32 variables. `prune_cifar.py`
prunes a narrow network that this script has trained.
Writes `teacher.weights.h5` (float32 variables) and `teacher.json`.
"""

from __future__ import annotations

import hashlib
import json
import pathlib
import time

import harness
import made_up
import numpy as np

import tfkd

BATCH = 128
WEIGHT_DECAY = 5e-4


def load(path):
    """CIFAR-10 in the Keras `.npz` convention, and the function that scales it."""
    import tensorflow as tf

    with np.load(path) as packed:
        x_train, y_train = packed["x_train"], packed["y_train"].reshape(-1).astype("int32")
        x_test, y_test = packed["x_test"], packed["y_test"].reshape(-1).astype("int32")
    mean = (x_train / 255.0).mean((0, 1, 2)).astype("float32")
    std = (x_train / 255.0).std((0, 1, 2)).astype("float32")

    def scale(images):
        return (tf.cast(images, tf.float32) / 255.0 - mean) / std

    return x_train, y_train, x_test, y_test, scale


def part_of(path, images, held_out=0):
    """`images` training images, of every class as many, and all test images; and the scaling.

    With `held_out`, so many other training images take the place of the test images: on
    them settings are chosen.
    """
    x_train, y_train, x_test, y_test, scale = load(path)
    data = tfkd.data.Dataset(x_train, y_train, x_test, y_test)
    part = data.subset(train=images)
    if held_out:
        kept = {image.tobytes() for image in part.x_train}
        others = np.array([image.tobytes() not in kept for image in x_train])
        rest = tfkd.data.Dataset(x_train[others], y_train[others], x_test, y_test)
        rest = rest.subset(train=held_out)
        part = tfkd.data.Dataset(part.x_train, part.y_train, rest.x_train, rest.y_train)
    return part, scale


def weights_of(folder) -> pathlib.Path:
    """The file of a network that this script has trained."""
    return pathlib.Path(folder) / "teacher.weights.h5"


def load_base(folder):
    """A network that this script has trained, with its penalty; and its record."""
    record = json.loads((pathlib.Path(folder) / "teacher.json").read_text())
    model = tfkd.models.resnet(
        record["depth"], widths=tuple(record["widths"]), weight_decay=WEIGHT_DECAY
    )
    model.load_weights(str(weights_of(folder)))
    return model, record


def classes_of(model, data, scale):
    """The class that a model gives to each test image."""
    test = tfkd.data.eval_batches(data.x_test, None, 500, preprocess=scale)
    return model.predict(test, verbose=0).argmax(1)


def accuracy_of(model, data, scale):
    """The share of the test images that a model gets right."""
    return float((classes_of(model, data, scale) == data.y_test).mean())


def cosine_sgd(steps, peak):
    """SGD with Nesterov momentum; warm-up over 10 % of the steps, cosine to 0."""
    import tf_keras as keras

    warmup = steps // 10
    rate = keras.optimizers.schedules.CosineDecay(
        peak / 20, steps - warmup, warmup_target=peak, warmup_steps=warmup
    )
    return keras.optimizers.SGD(rate, momentum=0.9, nesterov=True)


def main():
    parser = harness.Parser(
        __doc__, data=made_up.cifar, depth=8, widths=[4, 8], images=256, epochs=1
    )
    parser.add_argument("--data", required=True, help="cifar10.npz")
    parser.add_argument("--out", default="saved_models/cifar_teacher", help="folder")
    parser.add_argument("--depth", type=int, default=56, help="of the ResNet")
    parser.add_argument("--widths", type=int, nargs="+", default=[16, 32, 64], help="of its stages")
    parser.add_argument("--images", type=int, default=50_000, help="training images")
    parser.add_argument("--policy", default="mixed_bfloat16", help="of Keras, while it trains")
    parser.add_argument("--threads", type=int, default=0, help="0: all")
    parser.add_argument("--epochs", type=int, default=12, help="passes")
    parser.add_argument("--peak", type=float, default=0.1, help="of the learning rate")
    parser.add_argument("--seed", type=int, default=0, help="of weights and batches")
    args = parser.parse_args()
    import tf_keras as keras

    harness.threads(args.threads)
    keras.utils.set_random_seed(args.seed)
    out = pathlib.Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    made_by = {"settings": harness.settings(args), "data": harness.digest(args.data)}
    # A backup of other settings must not be resumed.
    made_by |= {"code": harness.code()}
    backup = out / "backup" / hashlib.sha256(json.dumps(made_by).encode()).hexdigest()[:10]
    data, scale = part_of(args.data, args.images)
    augment = tfkd.data.shift_and_flip(4)
    train = tfkd.data.batches(
        data.x_train, data.y_train, BATCH, seed=args.seed, augment=augment, preprocess=scale
    )
    steps = tfkd.data.steps_per_epoch(len(data.x_train), BATCH)

    keras.mixed_precision.set_global_policy(args.policy)
    model = tfkd.models.resnet(args.depth, widths=args.widths, weight_decay=WEIGHT_DECAY)
    keras.mixed_precision.set_global_policy("float32")
    model.compile(
        cosine_sgd(steps * args.epochs, args.peak),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    began = time.time()
    model.fit(
        train,
        steps_per_epoch=steps,
        epochs=args.epochs,
        verbose=2,
        callbacks=[keras.callbacks.BackupAndRestore(str(backup))],
    )
    teacher = tfkd.models.resnet(args.depth, widths=args.widths)
    teacher.set_weights(model.get_weights())
    teacher.compile(metrics=["accuracy"], loss="mse")
    teacher.save_weights(str(weights_of(out)))
    accuracy = accuracy_of(teacher, data, scale)
    record = {
        **harness.settings(args),
        "test_accuracy_float32": accuracy,
        "minutes": (time.time() - began) / 60,
        "made_by": made_by,
        **harness.environment(),
    }
    tfkd.artifacts.write_json(out / "teacher.json", record)
    line = [args.depth, tuple(args.widths), args.images, args.epochs, f"{100 * accuracy:.2f}"]
    text = harness.table(["ResNet", "widths", "images", "epochs", "accuracy %"], [line])
    harness.show(args, text, record=record)


if __name__ == "__main__":
    main()
