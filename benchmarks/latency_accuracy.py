"""Accuracy of networks pruned by measured time and by MACs, at equal time in LiteRT.

    python benchmarks/latency_accuracy.py --data cifar10.npz
    python benchmarks/latency_accuracy.py --data cifar10.npz --images 20000 --epochs 20

Each network is trained, then pruned to `--macs-reduction` of its MACs (kept counts in
multiples of 8), and by time: once to the time that this one takes, once to `--faster` less.
All are trained on alike; the epoch is chosen by held-out images, and the accuracy is that
of the test images. The table of layer times is kept in the folder of the records; the times
that are printed come from another measurement, of the four files in turns.
"""

from __future__ import annotations

import pathlib
import statistics
from typing import Any

import harness
import made_up
import numpy as np
from cifar_teacher import cosine_sgd, load
from latency_budget import in_turns

import tfkd

BATCH, HELD_OUT = 64, 1000
WAYS = ("whole", "by MACs", "by time", "by time, faster")
Record = dict[str, Any]


def inverted() -> Any:
    """Inverted residual blocks, as in MobileNetV2, for small images."""
    import tf_keras as keras

    layers = keras.layers

    def bn(x, relu=True):
        x = layers.BatchNormalization()(x)
        return layers.ReLU(6.0)(x) if relu else x

    x = inputs = keras.Input((32, 32, 3))
    x = bn(layers.Conv2D(16, 3, strides=2, padding="same", use_bias=False)(x))
    for filters, strides in ((16, 1), (24, 2), (24, 1), (32, 2), (32, 1)):
        y = bn(layers.Conv2D(6 * x.shape[-1], 1, use_bias=False)(x))
        y = bn(layers.DepthwiseConv2D(3, strides, padding="same", use_bias=False)(y))
        y = bn(layers.Conv2D(filters, 1, use_bias=False)(y), relu=False)
        x = layers.Add()([x, y]) if y.shape == x.shape else y
    x = layers.GlobalAveragePooling2D()(bn(layers.Conv2D(128, 1, use_bias=False)(x)))
    return keras.Model(inputs, layers.Dense(10, name="logits")(x), name="inverted")


NETWORKS = {
    "resnet8": lambda: tfkd.models.resnet(8),
    "vgg": lambda: tfkd.models.vgg16(widths=(8, 16, 32, 64, 64)),
    "inverted": inverted,
}


def train(model: Any, data: Any, epochs: int, peak: float, seed: int) -> None:
    """Trains a model; the weights of its best epoch by held-out images stay."""
    import tf_keras as keras

    x, y, x_held, y_held = data
    rng, best = np.random.default_rng(seed), (-1.0, model.get_weights())
    steps = len(x) // BATCH
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(cosine_sgd(steps * epochs, peak), loss, metrics=["accuracy"])
    for _ in range(epochs):
        order = rng.permutation(len(x))[: steps * BATCH]
        mirrored = np.where(rng.random(len(order))[:, None, None, None] < 0.5, 1, -1)
        images = np.where(mirrored > 0, x[order], x[order][:, :, ::-1])
        model.fit(images, y[order], BATCH, shuffle=False, verbose=0)
        found = model.evaluate(x_held, y_held, 500, verbose=0)[1]
        best = max(best, (found, model.get_weights()), key=lambda pair: pair[0])
    model.set_weights(best[1])


def run(name: str, seed: int, data: Any, test: Any, times: Any, args: Any) -> Record:
    """Accuracy in percent, milliseconds and MACs of each way."""
    import tf_keras as keras

    from tfkd import pruning

    keras.utils.set_random_seed(seed)
    model = NETWORKS[name]()
    train(model, data, args.epochs, args.peak, seed)
    graph = pruning.analyse(model)
    by_macs = pruning.plan(graph, args.macs_reduction, round_to=8)
    models = {"whole": model, "by MACs": pruning.shrink(model, pruning.select(model, by_macs))}
    # Plans keep 2 % in reserve.
    limit = times.beside(models["by MACs"], model) / 0.98
    for way, budget in (("by time", limit), ("by time, faster", (1 - args.faster) * limit)):
        plan = pruning.plan(graph, latency_ms=budget, measure=times)
        models[way] = pruning.shrink(model, pruning.select(model, plan))
    found: Record = {"network": name, "seed": seed}
    files = {way: (one, "float32") for way, one in models.items()}
    ms = in_turns(files, args.rounds, 3)
    for way, one in models.items():
        if way != "whole":
            train(one, data, args.tuning, args.peak / 2, seed)
        accuracy = 100 * one.evaluate(*test, 500, verbose=0)[1]
        macs = tfkd.report.profile(one).macs
        found[way] = {"accuracy": accuracy, "ms": statistics.median(ms[way]), "macs": macs}
    return found


def table(records: list[Record]) -> str:
    """Mean ± standard deviation over the seeds, and how far from the plan by MACs."""
    rows = []
    for name in dict.fromkeys(record["network"] for record in records):
        found = [record for record in records if record["network"] == name]
        for way in WAYS:
            accuracy = [one[way]["accuracy"] for one in found]
            apart = [one[way]["accuracy"] - one["by MACs"]["accuracy"] for one in found]
            time = [one[way]["ms"] / one["whole"]["ms"] for one in found]
            macs = statistics.mean(one[way]["macs"] / one["whole"]["macs"] for one in found)
            cells = [harness.spread(accuracy, 1), harness.spread(apart, 1), harness.spread(time)]
            rows.append([name, way, *cells, f"{100 * macs:.0f} %"])
    head = ["network", "pruned", "accuracy %", "against MACs", "of the time", "of the MACs"]
    return harness.table(head, rows, left=2)


def main() -> None:
    small = {"data": made_up.cifar, "images": 200, "epochs": 1, "tuning": 1, "seeds": 1}
    parser = harness.Parser(
        __doc__, "saved_models/latency_accuracy", **small, networks=["resnet8"], held_out=64,
        rounds=3,
    )  # fmt: skip
    parser.add_argument("--data", required=True, help="cifar10.npz")
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--seeds", type=int, default=3, help="runs of each network")
    parser.add_argument("--images", type=int, default=5000, help="training images")
    parser.add_argument("--held-out", type=int, default=HELD_OUT, help="images of these to choose")
    parser.add_argument("--epochs", type=int, default=8, help="of the network")
    parser.add_argument("--tuning", type=int, default=4, help="epochs after pruning")
    parser.add_argument("--peak", type=float, default=0.05, help="of the learning rate")
    parser.add_argument("--macs-reduction", type=float, default=0.5, help="of the plan by MACs")
    parser.add_argument("--faster", type=float, default=0.12, help="of the second plan by time")
    parser.add_argument("--rounds", type=int, default=100, help="turns of the files, three times")
    parser.add_argument("--threads", type=int, default=0, help="0: all")
    args = parser.parse_args()
    harness.threads(args.threads)
    x_train, y_train, x_test, y_test, scale = load(args.data)
    part = tfkd.data.Dataset(x_train, y_train, x_test, y_test).subset(train=args.images)
    x, y = scale(part.x_train).numpy(), np.asarray(part.y_train).reshape(-1)
    held = len(x) - args.held_out
    data = x[:held], y[:held], x[held:], y[held:]
    test = scale(x_test).numpy(), y_test
    pathlib.Path(args.out).mkdir(parents=True, exist_ok=True)
    store = harness.Records(args, data=harness.digest(args.data))
    times = tfkd.report.LayerTimes(pathlib.Path(args.out) / "times" / "layer_times.json")
    records = []
    for seed in range(args.seeds):
        for name in args.networks:
            settings = harness.settings(args, "networks", "seeds") | {"seed": seed, "network": name}

            def make(name=name, seed=seed):
                return run(name, seed, data, test, times, args)

            record = store.run(f"{name}, {seed}", settings, make)
            records += [record] if record else []
    harness.show(args, table(records), records=records)


if __name__ == "__main__":
    main()
