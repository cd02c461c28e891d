"""Checks pruned networks of `tf_keras.applications` against the same networks with masks.

`check(name)` builds a network with random weights, removes a random 30 % of every
group, and compares what `tfkd.pruning.shrink` makes with a mask made here. The
mask takes from tfkd only which filters a unit is. What follows from them, the
batch normalizations and depthwise biases of channels that now receive nothing,
is found by running the network layer by layer.

A freshly initialised network often gives one output for every input, and any two
of them agree. So kernels are He-normal, biases, gammas and betas random, moving
statistics come from the images, and the outputs must depend on the input.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from tfkd import pruning, report
from tfkd.networks.paths import layers_by_path
from tfkd.pruning.graph import KEPT, Graph

SHARE = 0.3  # of every group that is removed at random
IMAGES = 32
CLASSES = 10
LARGEST_DIFFERENCE = 1e-4  # of the output's range
LEAST_VARIATION = 0.2  # of the output's range, between inputs
LEAST_PRUNABLE = 0.9  # of the filters, in the convolutional families

# Family → networks; the first ones are the smallest.
FAMILIES = {
    "VGG": ("VGG16", "VGG19"),
    "ResNet": ("ResNet50", "ResNet101", "ResNet152"),
    "ResNetV2": ("ResNet50V2", "ResNet101V2", "ResNet152V2"),
    "ResNetRS": ("ResNetRS50", "ResNetRS152"),
    "Inception": ("InceptionV3",),
    "InceptionResNet": ("InceptionResNetV2",),
    "Xception": ("Xception",),
    "MobileNet": ("MobileNet",),
    "MobileNetV2": ("MobileNetV2",),
    "MobileNetV3": ("MobileNetV3Small", "MobileNetV3Large"),
    "DenseNet": ("DenseNet121", "DenseNet169", "DenseNet201"),
    "NASNet": ("NASNetMobile", "NASNetLarge"),
    "EfficientNet": ("EfficientNetB0", "EfficientNetB4"),
    "EfficientNetV2": ("EfficientNetV2B0", "EfficientNetV2S"),
    "RegNetX": ("RegNetX002", "RegNetX008", "RegNetX064"),
    "RegNetY": ("RegNetY002", "RegNetY008", "RegNetY064"),
    "ConvNeXt": ("ConvNeXtTiny", "ConvNeXtSmall"),
}
# Their layer normalizations take a mean over the channels, which all must stay for.
NORMALIZED_OVER_CHANNELS = ("ConvNeXt",)
STATISTICS = ("moving_mean", "moving_variance", "mean", "variance", "count")
# Of ImageNet's pixels in [0, 1]: what EfficientNet's Normalization holds.
MEAN, DEVIATION = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
SIZES = {"Inception": 75, "InceptionResNet": 75, "Xception": 71, "ConvNeXt": 32}


def family_of(name: str) -> str:
    """The family of a network."""
    return next(family for family, names in FAMILIES.items() if name in names)


def build(name: str) -> keras.Model:
    """A network for ten classes that returns logits, on images as small as it takes."""
    size = SIZES.get(family_of(name), 64)
    constructor = getattr(keras.applications, name)
    model = constructor(
        weights=None, classes=CLASSES, input_shape=(size, size, 3), classifier_activation=None
    )
    for layer in model.layers:
        # Without weights it is not adapted, and a copy that forgets its state goes unseen.
        if isinstance(layer, keras.layers.Normalization) and layer.weights:
            layer.set_weights([MEAN, np.square(DEVIATION), *layer.get_weights()[2:]])
            layer.finalize_state()
    return model


def images(model: keras.Model, seed: int, count: int = IMAGES) -> np.ndarray:
    """Images that differ in colour, in large shapes, in contrast and in noise."""
    rng = np.random.default_rng(seed)
    height, width, channels = model.input_shape[1:]
    colour = rng.normal(size=(count, 1, 1, channels))
    coarse = rng.normal(size=(count, 4, 4, channels))
    shapes = tf.image.resize(coarse, (height, width)).numpy()
    noise = rng.normal(size=(count, height, width, channels))
    contrast = np.geomspace(0.3, 3, count).reshape(-1, 1, 1, 1)
    return (40 * contrast * (colour + shapes + noise)).astype("float32")


def kind_of(weight: tf.Variable) -> str:
    """`conv1/kernel:0` → `kernel`."""
    return weight.name.rpartition("/")[2].split(":")[0]


def fan_in(kind: str, shape: tuple[int, ...]) -> int:
    """How many inputs one number of a kernel's output sums."""
    return int(np.prod(shape[:-2] if kind == "depthwise_kernel" else shape[:-1]))


def randomize(model: keras.Model, seed: int) -> None:
    """Draws He-normal kernels, random biases, gammas and betas.

    Without batch normalization, what all inputs have in common grows from layer
    to layer: there the numbers of each filter are moved to a mean of zero.
    """
    rng = np.random.default_rng(seed)
    centred = not any(kind_of(weight) == "moving_mean" for weight in model.weights)
    for weight in model.weights:
        kind, shape = kind_of(weight), tuple(weight.shape)
        if kind.endswith("kernel"):
            value = rng.normal(0, np.sqrt(2 / fan_in(kind, shape)), shape)
            if centred and kind == "kernel":
                value -= value.mean(axis=tuple(range(len(shape) - 1)), keepdims=True)
        elif kind.endswith("gamma"):
            value = rng.uniform(0.5, 1.5, shape)
        elif kind in ("bias", "beta"):
            value = rng.normal(0, 0.6 if kind == "beta" and not centred else 0.3, shape)
        elif kind in STATISTICS:
            continue
        else:
            raise ValueError(f"{weight.name}: expected a weight of a known kind")
        weight.assign(value.astype("float32"))


def settle(model: Any, x: np.ndarray) -> None:
    """Takes the moving statistics from one batch, without dropout; of Keras 2 or 3."""
    layers = list(model._flatten_layers(include_self=False, recursive=True))
    norms = [layer for layer in layers if type(layer).__name__ == "BatchNormalization"]
    drops = [layer for layer in layers if type(layer).__name__ == "Dropout"]
    before = [layer.momentum for layer in norms], [layer.rate for layer in drops]
    for layer in norms:
        layer.momentum = 0.0
    for layer in drops:
        layer.rate = 0.0
    model(x, training=True)
    for layer, momentum in zip(norms, before[0], strict=True):
        layer.momentum = momentum
    for layer, rate in zip(drops, before[1], strict=True):
        layer.rate = rate


def put_back(model: keras.Model, weights: list[np.ndarray]) -> None:
    """Sets all weights but the statistics."""
    for variable, value in zip(model.weights, weights, strict=True):
        if kind_of(variable) not in STATISTICS:
            variable.assign(value)


def variation(outputs: np.ndarray) -> float:
    """How far an output moves between inputs, mean over the outputs, per range of all."""
    return float(np.ptp(outputs, axis=0).mean() / np.ptp(outputs))


def random_units(graph: Graph, seed: int, share: float = SHARE) -> np.ndarray:
    """Bool array (U,): a share of every group, at least one unit, at most all but one."""
    rng = np.random.default_rng(seed)
    removed = np.zeros(graph.units, bool)
    for group in graph.groups:
        count = min(max(round(share * group.size), 1), group.size - 1)
        removed[rng.choice(group.units, count, replace=False)] = True
    return removed


def follow(model: Any, values: Sequence[Any], before: Callable[[Any, Any], None]) -> list[Any]:
    """Runs a model layer by layer; `before(layer, input)` is called ahead of each."""
    known = {id(t): v for t, v in zip(model.inputs, values, strict=True)}
    for depth in sorted(model._nodes_by_depth, reverse=True):
        for node in model._nodes_by_depth[depth]:
            if node.is_input:
                continue
            call = (node.call_args, node.call_kwargs)
            args, kwargs = tf.nest.map_structure(lambda t: known.get(id(t), t), call)
            if hasattr(node.layer, "_nodes_by_depth"):
                found = follow(node.layer, tf.nest.flatten(args), before)
            else:
                before(node.layer, args[0])
                found = tf.nest.flatten(node.layer(*args, **kwargs))
            names = [id(t) for t in tf.nest.flatten(node.outputs)]
            known.update(zip(names, found, strict=True))
    return [known[id(t)] for t in model.outputs]


def shifts(layer: Any) -> list[tf.Variable]:
    """Weights by which a layer that keeps channels apart moves one of them off zero."""
    if isinstance(layer, keras.layers.BatchNormalization):
        return [w for w in (layer.gamma, layer.beta, layer.moving_mean) if w is not None]
    if isinstance(layer, keras.layers.DepthwiseConv2D) and layer.use_bias:
        return [layer.bias]
    return []


def zero_at(variable: tf.Variable, gone: np.ndarray, axis: int = 0) -> None:
    """Sets slices along an axis to zero."""
    value = variable.numpy()
    np.moveaxis(value, axis, 0)[gone] = 0
    variable.assign(value)


def zero_filters(graph: Graph, removed: np.ndarray) -> None:
    """Zeroes the filters and biases of removed units: all that is taken from the graph."""
    for axis in graph.axes:
        gone = (axis.units != KEPT) & removed[np.maximum(axis.units, 0)]
        if axis.scored and gone.any():
            zero_at(graph.variable(axis.layer, axis.weight), gone, axis.axis)
            with contextlib.suppress(AttributeError):
                zero_at(graph.variable(axis.layer, "bias"), gone)


def make_positive(model: keras.Model) -> None:
    """Sets weights with which no channel is ever zero, unless its filters are.

    Kernels take the mean of their inputs, and everything is moved up a little.
    """
    for weight in model.weights:
        kind, shape = kind_of(weight), tuple(weight.shape)
        if kind.endswith("kernel"):
            weight.assign(np.full(shape, 1 / fan_in(kind, shape), "float32"))
        elif kind in ("moving_mean", "bias", "beta"):
            weight.assign(np.full(shape, 0.0 if kind == "moving_mean" else 0.1, "float32"))
        elif kind not in ("mean", "variance", "count"):
            weight.assign(np.ones(shape, "float32"))


def mask(model: keras.Model, graph: Graph, removed: np.ndarray) -> None:
    """Zeroes the filters of removed units, and the shifts of channels that then get nothing.

    Which these are is seen with weights that make every other channel positive.
    """
    weights, found = model.get_weights(), []
    make_positive(model)
    zero_filters(graph, removed)

    def quieten(layer: Any, value: Any) -> None:
        for variable in shifts(layer):
            silent = ~np.any(np.asarray(value), axis=tuple(range(len(value.shape) - 1)))
            zero_at(variable, silent)
            found.append((variable, silent))

    follow(model, [tf.fill([1, *model.input_shape[1:]], 1000.0)], quieten)
    model.set_weights(weights)
    zero_filters(graph, removed)
    for variable, silent in found:
        zero_at(variable, silent)


def prunable(graph: Graph) -> tuple[int, int]:
    """Filters that may go, and all filters."""
    owners = [axis.units for axis in graph.axes if axis.scored]
    return sum(int((u != KEPT).sum()) for u in owners), sum(len(u) for u in owners)


def time_steps(model: keras.Model) -> dict[str, Any]:
    """Seconds for analysing, planning half of the MACs, and shrinking with its proof."""
    clock, processor = [time.perf_counter()], time.process_time()
    graph = pruning.analyse(model)
    clock.append(time.perf_counter())
    plan = pruning.plan(graph, macs_reduction=0.5, residual="coupled")
    selection = pruning.select(model, plan)
    clock.append(time.perf_counter())
    pruning.shrink(model, selection)
    clock.append(time.perf_counter())
    names = ("analyse", "plan", "shrink")
    seconds = dict(zip(names, np.diff(clock).tolist(), strict=True))
    # On a machine that does other things too, the processor's time says more.
    spent = time.process_time() - processor
    return {"seconds": seconds, "cpu_seconds": spent, "planned": plan.macs_reduction}


def check(name: str, seed: int = 0, timed: bool = False) -> dict[str, Any]:
    """Prunes a network at random; returns its record, in which `failures` should be empty.

    Args:
        name: of the network in `tf_keras.applications`.
        seed: of weights, images and the choice of units.
        timed: also measure `time_steps`.
    """
    model = build(name)
    randomize(model, seed)
    x = images(model, seed + 1)
    settle(model, x)
    timing = time_steps(model) if timed else {}
    graph = pruning.analyse(model)
    removed = random_units(graph, seed + 2)
    whole, weights = np.asarray(model(x)), model.get_weights()
    mask(model, graph, removed)
    settle(model, x)
    masked = np.asarray(model(x))
    put_back(model, weights)
    selection = pruning.Selection.from_units(graph, removed)
    small = pruning.shrink(model, selection, verify=False)
    found = np.asarray(small(x))
    filters, all_filters = prunable(graph)
    record = {
        "name": name,
        "family": family_of(name),
        "layers": len(layers_by_path(model)),
        "groups": len(graph.groups),
        "params": [model.count_params(), small.count_params()],
        "macs": [graph.macs(), graph.macs(removed)],
        "profile": [report.profile(m).known_macs for m in (model, small)],
        "removed": int(removed.sum()),
        "filters": [filters, all_filters],
        "difference": float(np.abs(masked - found).max() / np.ptp(masked)),
        "variation": [variation(whole), variation(masked)],
        "range": float(np.ptp(masked)),
        "frozen": _reasons(graph),
        **timing,
    }
    return {**record, "failures": failures(record, graph.params(removed))}


def _reasons(graph: Graph) -> dict[str, int]:
    """Reason → channels that stay for it."""
    found: dict[str, int] = {}
    for item in graph.frozen:
        found[item.reason] = found.get(item.reason, 0) + item.channels
    return found


def failures(record: dict[str, Any], params: int) -> list[str]:
    """What does not hold of a record; `params` is what the graph says of the small model."""
    filters, all_filters = record["filters"]
    least = 0.0 if record["family"] in NORMALIZED_OVER_CHANNELS else LEAST_PRUNABLE
    tests = {
        "blind: outputs hardly depend on the input": min(record["variation"]) >= LEAST_VARIATION,
        "shrunk differs from masked": record["difference"] <= LARGEST_DIFFERENCE,
        "too few filters can be pruned": filters >= least * all_filters,
        "MACs differ from report.profile": record["macs"] == record["profile"],
        "parameters differ from the graph's": record["params"][1] == params,
    }
    return [text for text, holds in tests.items() if not holds]
