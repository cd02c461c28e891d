"""Shrinks a model: removes pruned filters and verifies the result against the masked model."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from tfkd import checks, example_inputs, known_faults
from tfkd.networks import edit_config
from tfkd.networks.configs import Config
from tfkd.pruning.change import output_change
from tfkd.pruning.channel_analysis import analyse
from tfkd.pruning.graph import Graph, Resize, kept
from tfkd.pruning.masking import checked, compare
from tfkd.pruning.optimizers import compile_like
from tfkd.pruning.selection import Selection
from tfkd.types import Data

# An agreement below this, or an error above it, is worth a warning.
_KEPT, _FAR = 0.9, 0.1


def shrink(
    model: keras.Model,
    selection: Selection,
    verify: bool | Data = True,
    *,
    optimizer: bool = False,
    tolerance: float = 1e-4,
) -> keras.Model:
    """Returns a smaller model without the filters of a selection.

    The remaining slices of kernels, biases, batch normalizations and of the inputs of the
    following layers are gathered; layers keep their names. The result is compared with the
    masked model on random inputs and on yours: the filters of `model` are zeroed during the
    comparison and restored afterwards, even if an error is raised. The two models share no
    variable.

    Args:
        model: the model that the selection was made for, masked or not.
        selection: the units to remove: `decay.selection`, or `select(model, plan)`.
        verify: True: compare on random inputs; False: don't compare; or examples as the
            model takes them, in any form of `tfkd.example_inputs`: compare on these, too,
            and warn if the outputs are far from those of `model` as it is: such a model has
            to be trained first.
        optimizer: also compile the new model like the old one, with the optimizer's state
            (momenta and the like) gathered.
        tolerance: largest difference allowed, as a fraction of the output's range.

    Returns:
        A new `tf_keras` model of the same class.

    Raises:
        TypeError: if an argument is of another type.
        ValueError: if the selection was made for another model, or belongs to a filter
            decay that has not ended; if the two models differ by more than `tolerance`;
            if weights are NaN or infinite; or if `optimizer` is True and the model is not
            compiled.

    Example:
        >>> from tfkd import models, pruning
        >>> model = models.resnet(8)
        >>> selection = pruning.select(model, pruning.plan(model, macs_reduction=0.4))
        >>> small = pruning.shrink(model, selection)
        >>> small.count_params() < model.count_params()
        True
    """
    checked(selection)
    checks.positive("tolerance", tolerance)
    checks.instance("optimizer", optimizer, bool, "True or False")
    graph = analyse(model, finite=True)
    removed = selection.units(graph)
    if optimizer and not getattr(model, "optimizer", None):
        raise ValueError(
            "`optimizer`: expected a compiled model to take the optimizer's state from, received "
            "one that is not compiled. Compile it, or leave optimizer=False."
        )
    verify = example_inputs.to_verify(verify, example_inputs.inputs_of(model), strict=False)
    small = without_units(graph, removed)
    if verify is not False:
        compare(graph, removed, small, verify, tolerance)
        if verify is not True:
            _warn_if_far(graph, removed, example_inputs.packed(model, verify))
    if optimizer:
        compile_like(graph, small, removed)
    known_faults.warn_of_overflow(small)
    return small


def _warn_if_far(graph: Graph, removed: np.ndarray, batch: Any) -> None:
    change = output_change(graph, removed, [batch])
    kept = change.error <= _FAR if change.agreement is None else change.agreement >= _KEPT
    if not kept:
        checks.warn(
            f"shrink: {change.text()}. The shrunk model equals the masked one; train it, best with "
            "the unpruned model as teacher, before its accuracy is judged."
        )


def without_units(graph: Graph, removed: np.ndarray) -> keras.Model:
    """Returns a new model without the removed units, with the remaining weights copied.

    Args:
        graph: graph of the model, which is not changed.
        removed: bool array (U,), True for removed units.

    Returns:
        A model of the same class with the same layer names, which shares no variable.
    """

    def resized(config: Config) -> Config:
        return _resized(unbuilt(config), graph, removed)

    def gathered(weight: tf.Variable) -> np.ndarray:
        return graph.gather(weight, weight.numpy(), removed)

    return edit_config.rebuild(graph.network, resized, gathered)


def unbuilt(config: Any) -> Any:
    """A copy of a config without the input shapes that layers were built with."""
    if isinstance(config, dict):
        drop = ("build_config", "build_input_shape")
        return {key: unbuilt(value) for key, value in config.items() if key not in drop}
    # Keras wraps lists and tuples that are attributes of layers: return plain ones.
    if isinstance(config, tuple):
        return tuple(unbuilt(value) for value in config)
    if isinstance(config, list):
        return [unbuilt(value) for value in config]
    return config if callable(config) else copy.copy(config)


def _resized(config: Config, graph: Graph, removed: np.ndarray) -> Config:
    """Sets the channel counts in the layers' configs."""
    configs = dict(edit_config.layer_configs(config))
    for path in {axis.layer for axis in graph.axes if not kept(axis.units, removed).all()}:
        _drop_constants(configs[path])
    for item in graph.resizes:
        _resize(configs[item.layer], item, removed)
    return config


def resized_layer(graph: Graph, path: str, removed: np.ndarray) -> Config:
    """The config of one layer as it is without the removed units."""
    config = unbuilt(graph.layer(path).get_config())
    _drop_constants(config)
    for item in graph.resizes:
        if item.layer == path:
            _resize(config, item, removed)
    return config


def _resize(config: Config, item: Resize, removed: np.ndarray) -> None:
    """Sets one channel count in the config of its layer."""
    count = int(kept(item.units, removed).sum())
    *outer, key = item.key.split(".")
    for name in outer:
        config = config[name]
    if item.index is None:
        config[key] = count
    else:
        sizes = list(config[key])
        sizes[item.index] = count
        config[key] = type(config[key])(sizes)


def _drop_constants(config: dict[str, Any]) -> None:
    """Replaces array initializers, which have the old shape: the weights are set anyway."""
    for key, value in config.items():
        constant = isinstance(value, dict) and value.get("class_name") == "Constant"
        if constant and not isinstance(value["config"].get("value"), (int, float)):
            config[key] = keras.initializers.serialize(keras.initializers.Zeros())
