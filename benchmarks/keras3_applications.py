"""All networks of Keras 3's `keras.applications` through `tfkd.from_keras3`.

    python benchmarks/keras3_applications.py [--out saved_models/keras3_applications]
        [--networks MobileNet ResNet50V2 ...] [--seed 0] [--table]

Each network has random weights, batch-norm statistics taken from images, and
inputs as small as it takes; its outputs must depend on the input. Both models
compute the same images, in float32 and in float64; the largest difference is given
as a part of the output's range. Networks with random weights blow up the rounding of
float32, by which the two differ (their batch normalizations add up in another order):
float64 shows that nothing else differs. Each network runs in a process of its own,
one after the other, and leaves a JSON file in `--out`; a network whose file is there
is not run again. Then the table and all records are written. The exit
status is 1 if a network was not converted, differs by more than 1e-10 in float64, or
hardly depends on its input.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

import tfkd

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ["KERAS_BACKEND"] = "tensorflow"

import application_nets as nets

IMAGES = 16
LARGEST_DIFFERENCE = 1e-5  # of the output's range, in float32: counted
LARGEST_FLOAT64 = 1e-10  # the same in float64: must hold
LEAST_VARIATION = nets.LEAST_VARIATION
SIZE = 64  # pixels a side, where nothing else is said
SIZES = {"Inception": 75, "NASNet": 64, "Xception": 71, "ConvNeXt": 32}
Record = dict[str, Any]


def networks() -> list[str]:
    """Names of all networks in `keras.applications`."""
    import keras

    return sorted(name for name in dir(keras.applications) if name[0].isupper())


def build(name: str) -> Any:
    """A network for ten classes that returns logits."""
    import keras

    size = next((n for prefix, n in SIZES.items() if name.startswith(prefix)), SIZE)
    return getattr(keras.applications, name)(
        weights=None,
        classes=nets.CLASSES,
        input_shape=(size, size, 3),
        classifier_activation=None,
    )


def randomize(model: Any, seed: int) -> None:
    """He-normal kernels, random biases, gammas and betas.

    Without batch normalization, what all inputs have in common grows from layer to
    layer: there the numbers of each filter are moved to a mean of zero.
    """
    rng = np.random.default_rng(seed)
    centred = not any(weight.name == "moving_mean" for weight in model.weights)
    for layer in model._flatten_layers(include_self=False, recursive=True):
        depthwise = "Depthwise" in type(layer).__name__
        for weight in layer._trainable_variables:
            shape = tuple(weight.shape)
            if weight.name.endswith("kernel"):
                narrow = depthwise or weight.name == "depthwise_kernel"
                fan_in = np.prod(shape[:-2] if narrow else shape[:-1])
                value = rng.normal(0, np.sqrt(2 / fan_in), shape)
                if centred and not narrow:
                    value -= value.mean(axis=tuple(range(len(shape) - 1)), keepdims=True)
            elif weight.name in ("bias", "beta"):
                value = rng.normal(0, 0.3 if centred or weight.name == "bias" else 0.6, shape)
            else:
                value = rng.uniform(0.5, 1.5, shape)
            weight.assign(value.astype("float32"))


def check(name: str, seed: int) -> Record:
    """Converts one network; returns its record, in which `failures` should be empty."""
    from tfkd.interop.comparing import difference

    model = build(name)
    randomize(model, seed)
    x = nets.images(model, seed + 1, IMAGES)
    nets.settle(model, x)
    whole = np.asarray(model(x, training=False))
    record = {
        "name": name,
        "size": model.input_shape[1],
        "layers": len(model.layers),
        "operations": len(model.operations) - len(model.layers),
        "parameters": model.count_params(),
        "variation": nets.variation(whole),
        "converted": False,
        "difference": None,
        "difference_float64": None,
        "missing": [],
    }
    try:
        made = tfkd.from_keras3(model, verify=False)
    except ValueError as error:
        record["missing"] = [line[2:] for line in str(error).splitlines() if line[:2] == "- "]
        return {**record, "failures": ["not converted"]}
    record |= {"converted": True, "difference": difference(model, made, x)[0]}
    same_count = made.count_params() == record["parameters"]
    del made
    record["difference_float64"] = in_float64(model, name, x)
    tests = {
        "outputs differ, not by rounding": record["difference_float64"] <= LARGEST_FLOAT64,
        "blind: outputs hardly depend on the input": record["variation"] >= LEAST_VARIATION,
        "other parameters": same_count,
    }
    return {**record, "failures": [text for text, holds in tests.items() if not holds]}


def in_float64(model: Any, name: str, x: np.ndarray) -> float:
    """The difference where both compute in float64: what is left is not rounding."""
    import keras

    from tfkd.interop.comparing import difference

    keras.config.set_dtype_policy("float64")
    exact = build(name)
    keras.config.set_dtype_policy("float32")
    exact.set_weights([np.asarray(weight) for weight in model.weights])
    return difference(exact, tfkd.from_keras3(exact, verify=False), x.astype("float64"))[0]


HEAD = (
    "| network | input | layers | operations | parameters | outputs move by | converted "
    "| difference / range, float32 | float64 | |\n"
    "|---|---:|---:|---:|---:|---:|---|---:|---:|---|"
)


def row(record: Record) -> str:
    """One line of the table."""
    found = record["difference"], record["difference_float64"]
    cells = [
        record["name"],
        record["size"],
        record["layers"],
        record["operations"],
        record["parameters"],
        f"{record['variation']:.2f}",
        "yes" if record["converted"] else "no",
        *("" if one is None else f"{one:.1e}" for one in found),
        "; ".join([*record["failures"], *record["missing"]]).replace("|", "\\|"),
    ]
    return "| " + " | ".join(map(str, cells)) + " |"


def summary(records: Sequence[Record]) -> str:
    """The table, and how many of how many."""
    good = sum(not record["failures"] for record in records)
    converted = sum(record["converted"] for record in records)
    found = [r["difference"] for r in records if r["difference"] is not None]
    lines = [HEAD, *map(row, records), ""]
    lines.append(f"Converted: {converted} of {len(records)}; everything holds for {good}.")
    if found:
        close = sum(one <= LARGEST_DIFFERENCE for one in found)
        lines.append(f"To {LARGEST_DIFFERENCE:g} in float32: {close} of {len(records)}.")
        lines.append(f"Largest difference in float32: {max(found):.1e} of the output's range.")
    return "\n".join(lines) + "\n"


def run_here(name: str, args: Any) -> None:
    """Checks one network and writes its record."""
    record = check(name, args.seed)
    tfkd.artifacts.write_json(pathlib.Path(args.out, f"{name}.json"), record)
    verdict = "; ".join([*record["failures"], *record["missing"]]) or "holds"
    print(f"{name}: {verdict} (difference {record['difference']})", flush=True)


def parse(argv: Sequence[str] | None = None) -> Any:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="saved_models/keras3_applications")
    parser.add_argument("--networks", nargs="+", metavar="NAME", help="default: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--table", action="store_true", help="run nothing, only the table")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main() -> None:
    args = parse()
    if args.one:
        run_here(args.one, args)
        return
    every = networks()
    unknown = sorted(set(args.networks or ()) - set(every))
    if unknown:
        sys.exit(f"not in keras.applications: {', '.join(unknown)}. There are: {', '.join(every)}")
    out = pathlib.Path(args.out)
    paths = {name: out / f"{name}.json" for name in args.networks or every}
    broken = []
    for name, path in paths.items():
        if not args.table and not path.exists() and not nets.run_alone(__file__, name, args):
            broken.append(name)
    records = [json.loads(path.read_text()) for path in paths.values() if path.exists()]
    if not records:
        sys.exit(f"no network has a record in {out}")
    text = summary(records)
    if broken:
        text += f"Ended with an error: {', '.join(broken)}.\n"
    tfkd.artifacts.write_text(out / "table.md", text)
    tfkd.artifacts.write_json(out / "results.json", records)
    print(text)
    sys.exit(1 if broken or any(record["failures"] for record in records) else 0)


if __name__ == "__main__":
    main()
