"""All networks of Keras 3's `keras.applications` through `tfkd.from_keras3`.

    python benchmarks/keras3_applications.py
    python benchmarks/keras3_applications.py --networks MobileNet ResNet50V2

Each network has random weights, batch-norm statistics taken from images, and
inputs as small as it takes; its outputs must depend on the input. Both models
compute the same images; the largest difference is given as a part of the output's
range, three times: in float32 as the models are; in float32 where tf_keras computes
batch normalization in the steps of Keras 3 and not in one fused kernel, which rounds
elsewhere; and in float64. Networks with random weights blow up rounding: the last
two show that nothing else differs. Each network runs in a process of its own, one
after the other, and leaves a record in `--out`. The exit status is 1 if
a network was not converted with its outputs verified, differs by more than 1e-5 in
the same steps or 1e-10 in float64, or hardly depends on its input.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Sequence
from typing import Any

import harness
import network_runs
import numpy as np

if __name__ == "__main__":  # before TensorFlow is imported: --help answers at once
    ARGS = network_runs.parse(__file__, __doc__, ["MobileNet"])

os.environ["KERAS_BACKEND"] = "tensorflow"

import application_nets as nets

import tfkd

IMAGES = 16
LARGEST_DIFFERENCE = 1e-5  # of the output's range, in float32
LARGEST_FLOAT64 = 1e-10  # the same in float64
LEAST_VARIATION = nets.LEAST_VARIATION
SIZE = 64  # pixels a side, where nothing else is said
SIZES = {"Inception": 75, "NASNet": 64, "Xception": 71, "ConvNeXt": 32}
Record = network_runs.Record


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
    from tfkd.interop.comparing import difference, difference_in_order

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
        "difference_in_order": None,
        "difference_float64": None,
        "missing": [],
    }
    try:
        made = tfkd.from_keras3(model, verify=x)
    except ValueError as error:
        lines = str(error).splitlines()
        record["missing"] = [line[2:] for line in lines if line[:2] == "- "] or lines[:1]
        return {**record, "failures": ["not converted"]}
    record |= {"converted": True, "difference": difference(model, made, x)[0]}
    record["difference_in_order"] = difference_in_order(model, made, x)
    same_count = made.count_params() == record["parameters"]
    del made
    record["difference_float64"] = in_float64(model, name, x)
    tests = {
        "outputs differ": record["difference_in_order"] <= LARGEST_DIFFERENCE,
        "outputs differ in float64": record["difference_float64"] <= LARGEST_FLOAT64,
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
    *("network", "input", "layers", "operations", "parameters", "outputs move by", "converted"),
    *("difference / range", "in the same steps", "in float64", ""),
)


def row(record: Record) -> list[object]:
    """One line of the table."""
    found = (record[f"difference{kind}"] for kind in ("", "_in_order", "_float64"))
    return [
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


def summary(records: Sequence[Record]) -> str:
    """The table, and how many of how many."""
    good = sum(not record["failures"] for record in records)
    converted = [record for record in records if record["converted"]]
    lines = [harness.table(HEAD, map(row, records))]
    lines.append(f"Converted: {len(converted)} of {len(records)}; everything holds for {good}.")
    for kind, text in (
        ("", "as they are"),
        ("_in_order", "in the same steps"),
        ("_float64", "in float64"),
    ):
        found = [record[f"difference{kind}"] for record in converted]
        close = sum(one <= LARGEST_DIFFERENCE for one in found)
        lines.append(
            f"To {LARGEST_DIFFERENCE:g} of the range {text}: {close} of {len(records)}; "
            f"largest difference {max(found, default=0):.1e}."
        )
    return "\n".join(lines) + "\n"


def finish(records: list[Record], out: pathlib.Path) -> tuple[str, bool]:
    """The table, and whether everything holds."""
    del out
    return summary(records), not any(record["failures"] for record in records)


if __name__ == "__main__":
    network_runs.main(__file__, ARGS, networks(), check, finish)
