"""Cuts filters out of a model, and proves that what is left is the same function."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from tfkd import checks, example_inputs, known_faults
from tfkd.networks import edit_config, layer_state, layer_weights
from tfkd.networks.paths import layers_by_path
from tfkd.pruning.channel_analysis import analyse
from tfkd.pruning.graph import Graph, gather, kept
from tfkd.pruning.masking import checked, masked
from tfkd.pruning.optimizers import compile_like
from tfkd.pruning.selection import Selection

BATCH = 4  # random examples on which the two models are compared
OPEN_SIZE = 32  # size of an axis that the model leaves open


def shrink(
    model: keras.Model,
    selection: Selection,
    verify: Any = True,
    *,
    optimizer: bool = False,
    tolerance: float = 1e-4,
) -> keras.Model:
    """Returns a smaller model: the filters of a selection are cut out.

    Kernels, biases, batch normalizations and the inputs of the next layers are
    gathered; the layers keep their names. The result is compared with the masked
    model on random inputs and on yours: the filters of `model` are set to zero
    while the two are compared, and put back. It is the same model afterwards, also
    when an error is raised, and shares no variable with the result.

    Args:
        model: the model that the selection was made for, masked or not.
        selection: what to remove: `decay.selection`, or `select(model, plan)`.
        verify: True: compare on random inputs; False: don't compare; or examples as
            the model takes them, in any form of `tfkd.example_inputs`: compare on these
            too.
        optimizer: also compile the new model as the old one is, with its
            optimizer's state (momenta and the like) gathered.
        tolerance: largest difference allowed, as a part of the output's range.

    Returns:
        A new `tf_keras` model of the same class.

    Raises:
        TypeError: if an argument is of another type.
        ValueError: if the selection was made for another model, or is of a decay that
            has not come to its end; the two models differ by more than `tolerance`;
            weights are NaN or infinite; or `optimizer` is asked for and the model is
            not compiled.

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
    graph = analyse(model)
    removed = selection.units(graph)
    if optimizer and not getattr(model, "optimizer", None):
        raise ValueError(
            "`optimizer`: expected a compiled model to take the optimizer's state from, received "
            "one that is not compiled. Compile it, or leave optimizer=False."
        )
    verify = example_inputs.to_verify(verify, example_inputs.inputs_of(model), strict=False)
    small = without_units(graph, removed)
    if verify is not False:
        with masked(graph, removed):
            _reset_states(model, small)
            for batch in _batches(model, verify):
                _compare(model, small, batch, tolerance)
            _reset_states(model, small)
    layer_weights.check_finite("model", small)
    if optimizer:
        compile_like(graph, small, removed)
    known_faults.warn_of_overflow(small)
    return small


def without_units(graph: Graph, removed: np.ndarray) -> keras.Model:
    """Returns a new model without the removed units, with the weights that are left.

    Args:
        graph: of the model, which is not changed.
        removed: bool array (U,), True where a unit goes.

    Returns:
        A model of the same class, with the same layer names, sharing nothing.
    """
    owned = graph.owners()

    def left(weight: Any) -> np.ndarray:
        return gather(weight.numpy(), owned.get(id(weight), []), removed)

    def resized(config: edit_config.Config) -> edit_config.Config:
        return _resized(_unbuilt(config), graph, removed)

    return edit_config.rebuild(graph.network, resized, left)


def _unbuilt(config: Any) -> Any:
    """A copy of a config without the shapes that layers were built for."""
    if isinstance(config, dict):
        drop = ("build_config", "build_input_shape")
        return {key: _unbuilt(value) for key, value in config.items() if key not in drop}
    # Keras wraps the lists and tuples that a layer keeps: plain ones are built from here.
    if isinstance(config, tuple):
        return tuple(_unbuilt(value) for value in config)
    if isinstance(config, list):
        return [_unbuilt(value) for value in config]
    return config if callable(config) else copy.copy(config)


def _resized(config: edit_config.Config, graph: Graph, removed: np.ndarray) -> edit_config.Config:
    """Sets the counts of channels in the layers' configs."""
    configs = dict(edit_config.layer_configs(config))
    for path in {axis.layer for axis in graph.axes if not kept(axis.units, removed).all()}:
        _forget_tables(configs[path])
    for item in graph.resizes:
        count = int(kept(item.units, removed).sum())
        inner = configs[item.layer]
        *outer, key = item.key.split(".")
        for name in outer:
            inner = inner[name]
        if item.index is None:
            inner[key] = count
        else:
            sizes = list(inner[key])
            sizes[item.index] = count
            inner[key] = type(inner[key])(sizes)
    return config


def _forget_tables(config: dict[str, Any]) -> None:
    """Replaces initializers that are arrays of the old size: the weights are set anyway."""
    for key, value in config.items():
        constant = isinstance(value, dict) and value.get("class_name") == "Constant"
        if constant and not isinstance(value["config"].get("value"), (int, float)):
            config[key] = keras.initializers.serialize(keras.initializers.Zeros())


def _reset_states(*models: keras.Model) -> None:
    """Recurrent layers that remember start both models alike."""
    for model in models:
        model.reset_states()


def _batches(model: keras.Model, verify: Any) -> list[Any]:
    """What to compare on: random inputs, and those that were given."""
    given = [] if verify is True else [example_inputs.packed(model, verify)]
    if all(tensor.dtype != tf.string for tensor in model.inputs):
        return [random_inputs(model), *given]
    if not given:
        expected = "examples (the model takes strings, which can't be drawn at random)"
        raise checks.value_error("verify", expected, True)
    return given


def random_inputs(model: keras.Model, count: int = BATCH, seed: int = 0) -> Any:
    """Random inputs in the structure that the model takes: normal numbers, or word numbers.

    Texts are of the words that the model's lookup layers know.
    """
    rng = np.random.default_rng(seed)
    words = [
        layer.input_dim
        for layer in layers_by_path(model).values()
        if isinstance(layer, keras.layers.Embedding)
    ]

    def draw(tensor: Any) -> tf.Tensor:
        shape = [
            tensor.shape[0] or count,
            *(OPEN_SIZE if size is None else size for size in tensor.shape[1:]),
        ]
        if tensor.dtype == tf.string:
            return tf.constant(rng.choice(_texts(model), shape))
        if tensor.dtype.is_floating and not words:
            return tf.constant(rng.normal(size=shape), tensor.dtype)
        return tf.cast(rng.integers(0, min(words, default=2), shape), tensor.dtype)

    return tf.nest.map_structure(draw, model.input)


def _texts(model: keras.Model) -> list[str]:
    """Words that the lookup layers of a model know, and one that they don't."""
    tables = [table for table in layer_state.tables(model) if hasattr(table, "get_vocabulary")]
    known = {str(word) for table in tables for word in table.get_vocabulary()}
    return [*sorted(known)[:1000], "?"]


def _compare(zeroed: keras.Model, small: keras.Model, batch: Any, tolerance: float) -> None:
    pairs = zip(
        tf.nest.flatten(zeroed(batch, training=False)),
        tf.nest.flatten(small(batch, training=False)),
        zeroed.output_names,
        strict=True,
    )
    for expected, found, name in pairs:
        expected, found = np.asarray(expected, "float64"), np.asarray(found, "float64")
        if not np.isfinite(expected).all():
            raise ValueError(
                f"`model`: expected finite outputs, received NaN or infinity in {name!r} of the "
                "masked model. Its weights are damaged, or its inputs out of range."
            )
        spread = np.ptp(expected)
        scale = spread if spread > 0 else max(np.abs(expected).max(), 1.0)
        difference = np.abs(expected - found).max() / scale
        if not difference <= tolerance:
            raise ValueError(
                f"`selection`: expected the shrunk model to equal the masked one to {tolerance:g} "
                f"of the output's range, received a difference of {difference:.3g} in {name!r}. "
                "A rule given to tfkd.pruning.register_rule is wrong, or the model does not "
                "compute in float32 (then raise `tolerance`)."
            )
