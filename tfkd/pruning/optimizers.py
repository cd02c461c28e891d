"""Transfers optimizer state (step, momenta, second moments) to a pruned model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from tfkd import checks
from tfkd.losses.configs import fresh
from tfkd.networks.layer_parts import arrays
from tfkd.networks.paths import layers_by_path
from tfkd.pruning.channel_analysis import analyse
from tfkd.pruning.graph import Graph
from tfkd.pruning.masking import checked
from tfkd.pruning.selection import Selection


def shrink_optimizer(
    optimizer: keras.optimizers.Optimizer,
    model: keras.Model,
    small: keras.Model,
    selection: Selection,
) -> keras.optimizers.Optimizer:
    """Returns a new optimizer for a shrunk model, with the state of the old one.

    The step, the learning rate and every slot (momenta, second moments) are kept, without
    the slices of removed filters.

    Args:
        optimizer: the optimizer that has trained `model`, for example
            `distiller.optimizer`. It is not changed.
        model: the model before shrinking.
        small: the result of `shrink(model, selection)`.
        selection: the selection that was removed.

    Raises:
        TypeError: if `optimizer` is not a tf_keras optimizer, or is a legacy one, which
            stores its state differently.
        ValueError: if `small` was not made from `model`, or the optimizer's slots do not
            have the shapes of the weights.

    Example:
        >>> import tf_keras as keras
        >>> from tfkd import models, pruning
        >>> model = models.resnet(8)
        >>> sgd = keras.optimizers.SGD(0.1, momentum=0.9)
        >>> sgd.build(model.trainable_variables)
        >>> selection = pruning.select(model, pruning.plan(model, macs_reduction=0.4))
        >>> small = pruning.shrink(model, selection)
        >>> new = pruning.shrink_optimizer(sgd, model, small, selection)
        >>> [m.shape for m in new.variables[1:]] == [w.shape for w in small.trainable_variables]
        True
    """
    _check(optimizer)
    graph = analyse(model)
    return _shrunk(optimizer, small, graph, checked(selection).units(graph))


def _check(optimizer: Any) -> None:
    if not isinstance(optimizer, keras.optimizers.Optimizer):
        fix = "Legacy optimizers are not supported."
        raise checks.type_error("optimizer", "a tf_keras.optimizers.Optimizer", optimizer, fix)


def _inner(optimizer: Any) -> Any:
    """The optimizer inside a LossScaleOptimizer."""
    return getattr(optimizer, "inner_optimizer", optimizer)


def _shrunk(optimizer: Any, small: keras.Model, graph: Graph, removed: np.ndarray) -> Any:
    """A new optimizer with the step, learning rate and gathered slots of the old one."""
    model = graph.model
    partners = _partners(model, small)
    new = type(optimizer).from_config(optimizer.get_config())
    old_inner, new_inner = _inner(optimizer), _inner(new)
    _copy_exclusions(old_inner, new_inner, partners.values())
    if not getattr(old_inner, "_built", False):
        return new  # it has no state yet
    # Keras has no public access to slots. An optimizer keeps them in lists parallel to its
    # variables, whose positions are in `_index_dict`.
    places = old_inner._index_dict
    trained = [v for v in model.trainable_variables if old_inner._var_key(v) in places]
    trained.sort(key=lambda v: places[old_inner._var_key(v)])
    new_inner.build([partners[id(v)][1] for v in trained])
    for old_slots, new_slots in _slots(old_inner, new_inner, len(places), len(trained)):
        for variable, slot in zip(trained, new_slots, strict=True):
            old_slot = old_slots[places[old_inner._var_key(variable)]]
            if old_slot is not None:
                value = old_slot.numpy()
                if old_slot.shape == variable.shape:
                    value = graph.gather(variable, value, removed)
                if value.shape != tuple(slot.shape):
                    raise _misfit(optimizer, variable, old_slot, slot)
                slot.assign(value)
    _copy_scalars(optimizer, new)
    return new


def _partners(model: keras.Model, small: keras.Model) -> dict[int, tuple[Any, Any]]:
    """id of a weight → the weight, and the corresponding one of the shrunk model."""
    olds, news = layers_by_path(model), layers_by_path(small)
    if list(olds) != list(news):
        raise _other_model("layers have other names")
    found: dict[int, tuple[Any, Any]] = {}
    # Layers come after the nested model that holds them, whose list is in another order if
    # their `trainable` flags differ.
    for old_layer, new_layer in zip(olds.values(), news.values(), strict=True):
        old_weights, new_weights = arrays(old_layer), arrays(new_layer)
        if len(old_weights) != len(new_weights):
            raise _other_model(f"layer {new_layer.name!r} has other weights")
        for old, new in zip(old_weights, new_weights, strict=True):
            found[id(old)] = old, new
    return found


def _misfit(optimizer: Any, variable: Any, old_slot: Any, slot: Any) -> ValueError:
    """The error for a slot that can't be transferred."""
    if old_slot.shape == variable.shape:
        return _other_model(f"{slot.name!r} has shape {tuple(slot.shape)}")
    kind = type(optimizer).__name__
    return ValueError(
        f"`optimizer`: expected one whose state has the shapes of the weights, received {kind}, "
        f"which keeps shape {tuple(old_slot.shape)} for {variable.name!r} of "
        f"{tuple(variable.shape)}. Compile the shrunk model with a new {kind}."
    )


def _copy_exclusions(old: Any, new: Any, partners: Iterable[tuple[Any, Any]]) -> None:
    """Copies `exclude_from_weight_decay` settings, which an optimizer's config lacks."""
    if hasattr(old, "_exclude_from_weight_decay_names"):
        keys = old._exclude_from_weight_decay
        excluded = [after for before, after in partners if old._var_key(before) in keys]
        new.exclude_from_weight_decay(excluded, list(old._exclude_from_weight_decay_names))


def _other_model(received: str) -> ValueError:
    return ValueError(
        "`small`: expected the model that shrink(model, selection) returned, received one whose "
        f"{received}."
    )


def _slots(old: Any, new: Any, old_count: int, new_count: int) -> Iterator[tuple[Any, Any]]:
    """Pairs of slot lists (one slot per variable) of two optimizers of the same class."""
    for name, slots in vars(new).items():
        if not isinstance(slots, (list, tuple)) or len(slots) != new_count:
            continue
        before = getattr(old, name, None)
        is_slots = all(isinstance(s, tf.Variable) for s in slots)
        if is_slots and isinstance(before, (list, tuple)) and len(before) == old_count:
            yield before, slots


def _copy_scalars(old: Any, new: Any) -> None:
    """Copies step, learning rate (unless a schedule), and the scale of a LossScaleOptimizer."""
    for name, variable in vars(_inner(new)).items():
        value = getattr(_inner(old), name, None)
        if isinstance(variable, tf.Variable) and isinstance(value, tf.Variable):
            variable.assign(value)
    before, now = getattr(old, "_loss_scale", None), getattr(new, "_loss_scale", None)
    for part in ("_current_loss_scale", "_counter"):
        if isinstance(getattr(before, part, None), tf.Variable):
            getattr(now, part).assign(getattr(before, part))


def compile_like(graph: Graph, small: keras.Model, removed: np.ndarray) -> None:
    """Compiles `small` like the model of `graph`, with the optimizer state gathered."""
    model = graph.model
    _check(model.optimizer)
    arguments = dict(model._compile_config.config) if model._compile_config else {}
    arguments["optimizer"] = _shrunk(model.optimizer, small, graph, removed)
    # Metrics and losses given as objects hold state: the new model gets new ones.
    for name in ("loss", "metrics", "weighted_metrics"):
        arguments[name] = fresh(arguments.get(name))
    small.compile(**arguments)


def slots_of(optimizer: keras.optimizers.Optimizer, variable: tf.Variable) -> list[tf.Variable]:
    """The optimizer slots of a weight: momenta, velocities, averages.

    Args:
        optimizer: a Keras optimizer; legacy ones and LossScaleOptimizer included.
        variable: the weight.

    Returns:
        The slot variables; an empty list if the optimizer has not been built yet.
    """
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    if hasattr(optimizer, "get_slot_names"):  # of tf_keras.optimizers.legacy
        slots = getattr(optimizer, "_slots", {}).get(_legacy_key(variable), {})
        return list(slots.values())
    index = getattr(optimizer, "_index_dict", {})
    position = index.get(optimizer._var_key(variable)) if index else None
    if position is None:
        return []
    # Each kind of slot is a list, parallel to the list of trained weights.
    lists = [
        value
        for name, value in vars(optimizer).items()
        if name != "_variables" and isinstance(value, (list, tuple)) and len(value) == len(index)
    ]
    return [values[position] for values in lists if hasattr(values[position], "assign")]


def _legacy_key(variable: Any) -> str:
    container = getattr(variable, "_distributed_container", None)
    return (container() if container else variable)._unique_id
