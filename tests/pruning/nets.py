"""Random weights that a test can see through, masks by hand, and the check of a cut model."""

from __future__ import annotations

import operator
import re

import numpy as np
import tensorflow as tf
import tf_keras as keras
from toys import assert_untouched, weights_of

from tfkd import pruning, report

layers = keras.layers


def inputs_of(model, count=6, seed=3):
    """Random inputs in the structure that the model takes; whole numbers below 5 for ints."""
    rng = np.random.default_rng(seed)

    def draw(tensor):
        shape = (
            tensor.shape[0] or count,
            *(8 if size is None else size for size in tensor.shape[1:]),
        )
        if not tensor.dtype.is_floating:
            return tf.constant(rng.integers(0, 5, shape), tensor.dtype)
        # Each example has a mean of its own, which global pooling leaves.
        mean = 2 * rng.normal(size=(shape[0], *[1] * (len(shape) - 2), shape[-1]))
        return tf.constant(mean + rng.normal(size=shape), tensor.dtype)

    return tf.nest.map_structure(draw, model.input)


def outputs_of(model, batch):
    """Outputs in inference, a list of float64 arrays."""
    return [np.asarray(y, "float64") for y in tf.nest.flatten(model(batch, training=False))]


def _fan_in(variable):
    if "embeddings" in variable.name:
        return 0.5
    depthwise = "depthwise_kernel" in variable.name
    return max(int(np.prod(variable.shape[: -2 if depthwise else -1])), 1)


def randomize(model, seed=0):
    """He-normal kernels, random biases, gammas and betas, moving statistics of one batch.

    Freshly made weights hide mistakes: a bias or beta of zero is a zero wherever it is.
    """
    rng = np.random.default_rng(seed)
    for variable in model.variables:
        name = variable.name.rsplit("/", 1)[-1]
        noise = rng.normal(size=variable.shape)
        if "variance" in name:
            noise = 0.5 + np.abs(noise)
        elif "gamma" in name or "alpha" in name:
            noise = rng.choice([-1, 1], variable.shape) * rng.uniform(0.5, 1.5, variable.shape)
        elif len(variable.shape) > 1:
            noise *= np.sqrt(2 / _fan_in(variable))
        if variable.dtype.is_floating:
            variable.assign(tf.cast(noise, variable.dtype))
    norms = [n for n in model._flatten_layers() if isinstance(n, layers.BatchNormalization)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    model(inputs_of(model, 8, seed + 1), training=True)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return model


def assert_sees(outputs):
    """Some input changes some output by at least a fifth of that output's range."""
    assert sight(outputs) > 0.2, f"outputs differ by {sight(outputs)} of their range: a blind test"


def sight(outputs):
    """The largest difference between inputs, as a part of the output's range."""
    return max(np.abs(y[1:] - y[:1]).max() / max(np.ptp(y), 1e-30) for y in outputs)


def some(graph, seed=0, share=0.4):
    """A selection of random units of every group: at least one, never all."""
    rng = np.random.default_rng(seed)
    removed = {
        group.name: rng.choice(
            group.size, min(max(1, round(share * group.size)), group.size - 1), replace=False
        )
        for group in graph.groups
    }
    return pruning.Selection(removed, graph.fingerprint)


def range_difference(first, second):
    """Largest difference of two lists of outputs, as a part of each output's range."""
    return max(
        np.abs(a - b).max() / max(np.ptp(a), 1e-30) for a, b in zip(first, second, strict=True)
    )


def zero_by_hand(model, selection, places):
    """Sets what the text `places` names to zero, with NumPy alone.

    `conv.kernel:3 conv.bias:0` are the axes along which index i is channel i of
    the only group; `dw.bias:0/2` means channel i // 2, `g.kernel:3%4` channel
    i % 4, and `b.kernel:3+6=a` index 6 + i, of group "a".
    """
    for place in places.split():
        path, axis, mark, number, group = re.fullmatch(
            r"(.+):(\d)(?:([/%+])(\d+))?(?:=(.+))?", place
        ).groups()
        path, weight = path.split(".", 1)
        owner = model
        for name in path.split("/"):
            owner = owner.get_layer(name)
        variable = operator.attrgetter(weight)(owner)
        value = np.moveaxis(variable.numpy(), int(axis), 0)
        index, number = np.arange(len(value)), int(number or 0)
        channel = {"/": index // max(number, 1), "%": index % max(number, 1)}.get(
            mark, index - number
        )
        value[np.isin(channel, selection.removed[group or next(iter(selection.removed))])] = 0
        variable.assign(np.moveaxis(value, 0, int(axis)))


def assert_exact(model, places="", seed=0, share=0.4, tolerance=1e-5, sees=assert_sees):
    """Cuts random units of every group; checks the result in every way that is general.

    Returns (graph, selection, small model).
    """
    randomize(model, seed)
    before, graph = weights_of(model), pruning.analyse(model)
    selection = some(graph, seed, share)
    small = pruning.shrink(model, selection, tolerance=tolerance)
    assert_untouched(before, model)
    batch = inputs_of(model)
    pruning.apply_selection(model, selection)
    expected, found = outputs_of(model, batch), outputs_of(small, batch)
    sees(expected)
    assert range_difference(expected, found) <= tolerance
    if places:
        model.set_weights(before)
        zero_by_hand(model, selection, places)
        assert range_difference(outputs_of(model, batch), found) <= tolerance
    model.set_weights(before)
    assert_counts(graph, selection, small)
    return graph, selection, small


def assert_counts(graph, selection, small):
    """MACs and parameters that the graph foretold are those of the cut model."""
    removed = selection.units(graph)
    profile = report.profile(small)
    assert graph.params(removed) == profile.params == small.count_params()
    if not graph.uncounted and profile.macs is not None:
        assert graph.macs(removed) == profile.macs
        assert graph.macs() == report.profile(graph.model).macs


def sizes(graph):
    """Group name → (size, its layers), as a test writes it."""
    return {group.name: (group.size, *group.layers) for group in graph.groups}


def reasons(graph):
    """Name → reason, of what is frozen."""
    return {frozen.name: frozen.reason for frozen in graph.frozen}
