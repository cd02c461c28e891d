"""Whether plans by measured time meet their budget, and what they leave of the MACs.

    python benchmarks/latency_budget.py
    python benchmarks/latency_budget.py --networks resnet20 --reductions 0.5

Untrained networks: time does not depend on the values of the weights. For each network and
each fraction of its time, widths are planned by the times of its layers in LiteRT (one
thread, one example). The shrunk network is then exported again and runs in turns with the
whole one, apart from the table, each timed call after an untimed one. One more budget, 1 %
of the time, can't be reached, and says what is the least. With --int8 a ResNet-56 in int8
is planned to be so many times faster than in float32, beside a plan by MACs. With --drift
the networks are timed so many times as multiples of one convolution, and nothing else is done.
"""

from __future__ import annotations

import functools
import pathlib
import statistics
import tempfile
from typing import Any

import harness
import numpy as np

import tfkd

Record = dict[str, Any]


def mobilenet() -> Any:
    import tf_keras as keras

    return keras.applications.MobileNetV2((96, 96, 3), alpha=0.35, weights=None, classes=10)


NETWORKS = {
    "resnet20": lambda: tfkd.models.resnet(20),
    "resnet56": lambda: tfkd.models.resnet(56),
    "mobilenetv2": mobilenet,
    "vgg16": lambda: tfkd.models.vgg16(),
    "transformer": lambda: tfkd.models.text_transformer(2000, 2, 64, layers=2, width=128),
    "resnet8": lambda: tfkd.models.resnet(8),
}
# What layer times are related to; see tfkd/report/layer_times.py.
CONVOLUTION = "one convolution"
FOUR = ("resnet20", "resnet56", "mobilenetv2", "transformer")


def inputs(model: Any) -> np.ndarray:
    """One example: noise, or token ids."""
    rng, (tensor,) = np.random.default_rng(0), model.inputs
    shape = (1, *tensor.shape[1:])
    if tensor.dtype.is_integer:
        return rng.integers(1, 100, shape).astype("int32")
    return rng.normal(size=shape).astype("float32")


def exported(model: Any, path: pathlib.Path, mode: str = "float32") -> Any:
    """A call of the file of a model."""
    x = inputs(model)
    data = np.random.default_rng(0).normal(size=(32, *x.shape[1:])).astype("float32")
    options = {"data": data, "io": "int8"} if mode == "int8" else {}
    tfkd.export.to_tflite(model, path, mode, verify=False, **options)
    predictor = tfkd.runtime.Predictor(path, threads=1)
    return functools.partial(predictor.run_one, *predictor.encode(x))


def in_turns(
    models: dict[str, tuple[Any, str]], rounds: int, repeats: int
) -> dict[str, list[float]]:
    """Median milliseconds of each (model, mode) in each repeat."""
    with tempfile.TemporaryDirectory() as folder:
        calls = {
            name: exported(model, pathlib.Path(folder, f"{i}.tflite"), mode)
            for i, (name, (model, mode)) in enumerate(models.items())
        }
        found = [tfkd.report.latency(calls, runs=rounds) for _ in range(repeats)]
    return {name: [one[name].p50 for one in found] for name in models}


def shrunk(model: Any, plan: Any) -> Any:
    from tfkd import pruning

    return pruning.shrink(model, pruning.select(model, plan))


def budgets(name: str, times: Any, args: Any) -> list[Record]:
    """One record for each fraction of the time of a network, and one for what is too much."""
    import tf_keras as keras

    from tfkd import pruning

    keras.utils.set_random_seed(args.seed)
    model = NETWORKS[name]()
    graph, records = pruning.analyse(model), []
    models: dict[str, tuple[Any, str]] = {"whole": (model, "float32")}
    for fraction in args.reductions:
        known = len(times.to_dict()["times"])
        try:
            plan = pruning.plan(graph, latency_reduction=fraction, measure=times)
        except pruning.OutOfReach as error:
            records.append({"network": name, "reduction": fraction, "refused": str(error)})
            continue
        models[str(fraction)] = (shrunk(model, plan), "float32")
        record = {"network": name, "reduction": fraction, "macs_left": 1 - plan.macs_reduction}
        record |= {"planned": plan.ms_after / plan.ms_before / (1 - fraction)}
        record |= {"measured": len(times.to_dict()["times"]) - known, "remove": plan.remove}
        records.append(record)
    medians = in_turns(models, args.rounds, args.repeats)
    for record in records:
        if "refused" not in record:
            taken = medians[str(record["reduction"])]
            ratios = [b / a for a, b in zip(medians["whole"], taken, strict=True)]
            record["ms"] = statistics.median(medians["whole"]), statistics.median(taken)
            record["again"] = statistics.median(ratios) / (1 - record["reduction"])
    try:
        pruning.plan(graph, latency_reduction=0.99, measure=times)
    except pruning.OutOfReach as error:
        records.append({"network": name, "reduction": 0.99, "refused": str(error)})
    return records


def rows(records: list[Record]) -> list[list[str]]:
    """Cells of the table, without the budgets that are refused."""
    return [
        [
            record["network"],
            f"{100 * record['reduction']:.0f} %",
            f"{record['ms'][0]:.3f}",
            f"{record['ms'][1]:.3f}",
            f"{100 * record['planned']:.1f} %",
            f"{100 * record['again']:.1f} %",
            f"{100 * record['macs_left']:.1f} %",
            str(record["measured"]),
        ]
        for record in records
        if "refused" not in record
    ]


def int8(times: Any, args: Any) -> tuple[str, Record]:
    """A ResNet-56 by time in int8 and by MACs, each beside the whole one in float32."""
    import tf_keras as keras

    from tfkd import pruning

    keras.utils.set_random_seed(args.seed)
    model = NETWORKS[args.int8_network]()
    graph, limit = pruning.analyse(model), times(model) / args.int8
    plans = {"half of the MACs": pruning.plan(graph, macs_reduction=0.5, round_to=8)}
    said = ""
    try:
        options = {"latency_ms": limit, "measure": times.in_mode("int8")}
        plans["by time"] = pruning.plan(graph, **options)
    except pruning.OutOfReach as error:
        said = f"\nby time: {error}\n"
    models = {name: (shrunk(model, plan), "int8") for name, plan in plans.items()}
    models = {"whole, float32": (model, "float32"), "whole": (model, "int8"), **models}
    medians, found, lines = in_turns(models, args.rounds, args.repeats), {}, []
    for name, taken in medians.items():
        ratios = [a / b for a, b in zip(medians["whole, float32"], taken, strict=True)]
        left = 1 - plans[name].macs_reduction if name in plans else 1.0
        found[name] = {"ratios": ratios, "macs_left": left}
        found[name]["remove"] = dict(plans[name].remove) if name in plans else {}
        ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})"
        lines.append([name, f"{100 * left:.1f} %", f"{statistics.median(taken):.3f}", ratio])
    head = [f"{args.int8_network}, int8", "MACs left", "ms (median)", "times faster (range)"]
    return harness.table(head, lines) + said, found


def convolution() -> Any:
    import tf_keras as keras

    return keras.Sequential([keras.layers.Conv2D(16, 3, padding="same", input_shape=(32, 32, 16))])


def drift(args: Any) -> None:
    """How the ratio of networks to one convolution changes with the state of the machine."""
    models = {CONVOLUTION: (convolution(), "float32")}
    models |= {name: (NETWORKS[name](), "float32") for name in args.networks}
    medians, rows = in_turns(models, args.rounds, args.drift), []
    for name, taken in medians.items():
        ratios = [a / b for a, b in zip(taken, medians[CONVOLUTION], strict=True)]
        cells = [f"{statistics.median(taken):.3f}", f"{min(taken):.3f}–{max(taken):.3f}"]
        rows.append([name, *cells, f"{min(ratios):.2f}–{max(ratios):.2f}"])
    head = ["network", "ms (median)", "ms (range)", "times the convolution (range)"]
    harness.show(args, harness.table(head, rows), milliseconds=medians)


def main() -> None:
    small = {"networks": ["resnet8"], "reductions": [0.4], "rounds": 5, "repeats": 1}
    parser = harness.Parser(__doc__, **small, int8_network="resnet8", int8=3.5)
    names = list(NETWORKS)
    parser.add_argument("--networks", nargs="*", choices=names, default=FOUR, help="which")
    parser.add_argument(
        "--reductions", nargs="+", type=float, default=[0.3, 0.5], help="of the time"
    )
    parser.add_argument("--rounds", type=int, default=150, help="turns of each file in a repeat")
    parser.add_argument("--repeats", type=int, default=5, help="medians of each file")
    parser.add_argument("--times", help="file of the table of layer times, kept and reused")
    parser.add_argument("--int8", type=float, default=5.2, help="times faster; 0: leave it out")
    parser.add_argument("--int8-network", choices=names, default="resnet56", help="which")
    parser.add_argument("--drift", type=int, default=0, help="medians of each network")
    parser.add_argument("--seed", type=int, default=0, help="of the weights")
    args = parser.parse_args()
    if args.drift:
        drift(args)
        return
    times = tfkd.report.LayerTimes(args.times)
    records = [record for name in args.networks for record in budgets(name, times, args)]
    head = ["network", "less time", "ms before", "ms after", "of what was asked, planned"]
    head += ["and again apart", "MACs left", "times measured"]
    text = harness.table(head, rows(records)) if records else ""
    for record in records:
        if "refused" in record:
            text += f"\n{record['network']}: {record['refused']}\n"
    found = {}
    if args.int8:
        table, found = int8(times, args)
        text += f"\n{table}"
    harness.show(args, text, records=records, int8=found)


if __name__ == "__main__":
    main()
