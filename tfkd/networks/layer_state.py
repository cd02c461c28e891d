"""Copying of layer state: weights, and what preprocessing layers keep beside them.

Keras copies weights. Some layers compute with more: `Normalization` with constants
that `finalize_state` derives from its weights, lookup layers with a table, and
`Discretization` with bin boundaries that its config omits (`configs.complete` adds
them). All copying of layers goes through this module, so that none of this is lost.
"""

from __future__ import annotations

import copy as copying
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from tfkd.networks.layer_parts import arrays
from tfkd.types import Tensor

_Preprocessing = keras.layers.experimental.preprocessing.PreprocessingLayer
TABLES = (tf.lookup.StaticHashTable, tf.lookup.experimental.MutableHashTable)
DECLARED = "_tfkd_outputs"  # the attribute that `tfkd.losses.declare_outputs` sets
# Weights that only adaptable layers have, not those with a given vocabulary or boundaries.
_FOR_ADAPTING = ("summary", "num_documents")
# Attributes that differ from the original's on purpose, because `configs.complete` sets them.
_GIVEN = ("input_bin_boundaries", "num_bins", "input_vocabulary", "input_idf_weights")


def copy_declaration(source: keras.Model, target: keras.Model) -> None:
    """Copies what `tfkd.losses.declare_outputs` has said of a model's outputs."""
    if hasattr(source, DECLARED):
        # Bypasses Keras's __setattr__, which would wrap and track lists and dicts.
        object.__setattr__(target, DECLARED, getattr(source, DECLARED))


def copy(
    source: keras.layers.Layer,
    target: keras.layers.Layer,
    change: Callable[[tf.Variable], Tensor] | None = None,
    fixed: bool = False,
) -> None:
    """Copies the state of a layer or model: weights, tables, boundaries, constants.

    Args:
        source: a built layer or model; it is not changed.
        target: another one that was built from its config (see `configs.complete`).
        change: maps a weight of `source` to the value of its copy; None: the same.
        fixed: as for `configs.complete`.

    Raises:
        ValueError: if the weights differ in number, or `source` has state that can't be
            copied; the message names the layer.

    Example:
        >>> from tfkd.networks.configs import complete
        >>> bins = keras.layers.Discretization(num_bins=2)
        >>> bins.adapt(np.arange(10.0)[:, None])
        >>> again = keras.layers.Discretization.from_config(complete(bins.get_config(), bins))
        >>> _ = again(np.zeros((1, 1)))
        >>> copy(bins, again)
        >>> again.bin_boundaries == bins.bin_boundaries, again.num_bins
        (True, 2)
    """
    pairs = list(_with_state(source, target))
    for old, new in pairs:
        _copy_tables(old, new)
        if not fixed:
            _make_adaptable(old, new)
    absent = {
        id(getattr(old, name))
        for old, new in pairs
        for name in _FOR_ADAPTING
        if hasattr(old, name) and not hasattr(new, name)
    }
    olds = [weight for weight in arrays(source) if id(weight) not in absent]
    news = arrays(target)
    if len(olds) != len(news):
        raise _not_copied(source, f"which then has {len(news)} weights instead of {len(olds)}")
    resized = False
    for old, new in zip(olds, news, strict=True):
        value = old if change is None else change(old)
        resized = resized or tuple(value.shape) != tuple(old.shape)
        new.assign(tf.cast(value, new.dtype))
    finalize(target)
    for old, new in pairs:
        _copy_rest(old, new, resized)


def check_file(model: keras.Model) -> None:
    """Raises if a layer has state that a file would lose: neither in its config nor in weights.

    Args:
        model: a built model, whose Keras layers were made with `configs.complete(..., fixed=True)`.

    Raises:
        ValueError: if a custom layer has such state; the message names the layer.
    """
    for old in model._flatten_layers():
        if not _has_state(old) or type(old).__module__.startswith("tf_keras."):
            continue
        try:
            new = type(old).from_config(old.get_config())
            new.build(old._build_input_shape)
            new.built = True  # A user's `build` may not set it; Keras does so in `__call__`.
            for weight, value in zip(arrays(new), arrays(old), strict=True):
                weight.assign(value)
            finalize(new)
        except Exception as error:
            raise _not_copied(old, f"which can't ({error!r})") from error
        name = next((name for name, _, _ in _differences(old, new)), None)
        if name is not None:
            raise _not_copied(old, f"which keeps {name!r} beside them")


def lost_in_keras_file(model: keras.Model) -> keras.layers.Layer | None:
    """The first layer whose adapted state Keras's `.keras` files would lose, or None.

    A `Discretization` is loaded without its boundaries, and Keras calls `finalize_state`
    after loading only for layers whose `load_own_variables` does so.

    Example:
        >>> bins = keras.layers.Discretization(num_bins=2, name="bins")
        >>> bins.adapt(np.arange(10.0)[:, None])
        >>> lost_in_keras_file(keras.Sequential([keras.Input((1,)), bins])).name
        'bins'
    """
    for part in model._flatten_layers():
        kind = type(part)
        if isinstance(part, keras.layers.Discretization):
            if part.input_bin_boundaries is None and part.bin_boundaries:
                return part
        elif not kind.__module__.startswith("tf_keras.") and _has_state(part):
            reads = kind.load_own_variables is not keras.layers.Layer.load_own_variables
            if arrays(part) and not reads:
                return part
    return None


def tables(model: keras.Model) -> list[keras.layers.Layer]:
    """The layers of a model that look words or numbers up in a table."""

    def has_table(part: Any) -> bool:
        return any(isinstance(value, TABLES) for value in vars(part).values())

    flat = list(model._flatten_layers())
    # The StringLookup inside a TextVectorization is a detail that users don't see.
    inside = {id(getattr(part, "_lookup_layer", None)) for part in flat}
    return [
        part
        for part in flat
        if (has_table(part) or hasattr(part, "_lookup_layer")) and id(part) not in inside
    ]


def finalize(layer: keras.layers.Layer) -> None:
    """Calls `finalize_state` on all layers, after their weights were assigned."""
    for part in layer._flatten_layers():
        part.finalize_state()


def _with_state(source: Any, target: Any) -> Iterator[tuple[Any, Any]]:
    """Pairs the sublayers that have state beside their weights with their copies."""
    olds = [part for part in source._flatten_layers() if _has_state(part)]
    if olds:
        news = [part for part in target._flatten_layers() if _has_state(part)]
        if [type(part) for part in olds] != [type(part) for part in news]:
            raise _not_copied(olds[0], "whose copy is not found in the new model")
        yield from zip(olds, news, strict=True)


def _has_state(layer: Any) -> bool:
    own = type(layer).finalize_state is not keras.layers.Layer.finalize_state
    return own or any(isinstance(value, TABLES) for value in vars(layer).values())


def _not_copied(layer: Any, reason: str) -> ValueError:
    return ValueError(
        "`model`: expected layers that can be built again from their config, received "
        f"{layer.name!r} ({type(layer).__name__}), {reason}. Give it a get_config that holds all "
        "arguments of its constructor, and keep what it learns in weights (add_weight), of which "
        "finalize_state makes the rest."
    )


def _copy_tables(old: Any, new: Any) -> None:
    """Replaces static lookup tables, which can't be changed once they are initialized."""
    for name, table in list(vars(old).items()):
        if not isinstance(table, tf.lookup.StaticHashTable) or not int(table.size()):
            continue  # The layer was never adapted.
        if not isinstance(getattr(new, name, None), tf.lookup.StaticHashTable):
            raise _not_copied(old, f"whose copy has no table {name!r}")
        with tf.init_scope():
            content = tf.lookup.KeyValueTensorInitializer(*table.export())
            setattr(new, name, tf.lookup.StaticHashTable(content, table.default_value))


def _make_adaptable(old: Any, new: Any) -> None:
    """Turns boundaries that `complete` gave into adapted ones, with the weight behind them."""
    bins = isinstance(old, keras.layers.Discretization)
    if bins and old.input_bin_boundaries is None and new.input_bin_boundaries is not None:
        new.input_bin_boundaries, new.num_bins = None, old.num_bins
        with tf.name_scope(new.name):
            new.build(new._build_input_shape)


def _copy_rest(old: Any, new: Any, resized: bool) -> None:
    """Copies the attributes in which a layer keeps state beside its weights."""
    if isinstance(old, _Preprocessing):
        new._is_adapted = old._is_adapted
    for name, value, known in [] if resized else list(_differences(old, new)):
        if isinstance(value, tf.lookup.experimental.MutableHashTable):
            known.insert(*value.export())
        elif not _is_plain(value):
            raise _not_copied(old, f"which keeps {name!r}, a {type(value).__name__}")
        elif _is_array(value) and _is_array(known):
            setattr(new, name, tf.cast(value, known.dtype) if tf.is_tensor(value) else value)
        else:
            setattr(new, name, copying.deepcopy(value))


def _differences(old: Any, new: Any) -> Iterator[tuple[str, Any, Any]]:
    """Attributes in which a layer and its copy differ: (name, value, value of the copy)."""
    keras_own = type(old).__module__.startswith("tf_keras.")
    for name, value in vars(old).items():
        known = vars(new).get(name)
        if isinstance(value, TABLES):
            # A layer with a given vocabulary has no table of word counts.
            if not (keras_own and known is None) and not _same_table(value, known):
                yield name, value, known
            continue
        # Of Keras's own layers, only arrays and tables can be adapted state.
        others = not (keras_own or name.startswith("_") or callable(value))
        learned = _is_array(value) or (others and (_is_plain(value) or known is None))
        if learned and name not in _GIVEN and not _same(value, known):
            yield name, value, known


def _same_table(value: Any, known: Any) -> bool:
    if not isinstance(known, TABLES):
        return False
    tables = [
        dict(zip(*(part.numpy().tolist() for part in table.export()), strict=True))
        if int(table.size())
        else {}
        for table in (value, known)
    ]
    return tables[0] == tables[1]


def _is_array(value: Any) -> bool:
    """True for an array or an eager tensor of numbers or text; not for a variable."""
    if isinstance(value, tf.Variable) or not hasattr(value, "numpy"):
        return isinstance(value, np.ndarray)
    return tf.is_tensor(value) and value.dtype not in (tf.resource, tf.variant)


def _is_plain(value: Any) -> bool:
    """True for numbers, text, arrays, and lists and dicts of these."""
    if isinstance(value, dict):
        return all(_is_plain(item) for item in value.values())
    if isinstance(value, (list, tuple)):
        return all(_is_plain(item) for item in value)
    plain = (bool, int, float, complex, str, bytes, np.generic, type(None))
    return isinstance(value, plain) or _is_array(value)


def _same(value: Any, known: Any) -> bool:
    """True for equal arrays and plain values; values that can't be compared count as equal."""
    if _is_array(value) and _is_array(known):
        a, b = np.asarray(value), np.asarray(known)
        return a.shape == b.shape and bool((a.astype(b.dtype) == b).all())
    if _is_array(value) or _is_array(known) or known is None:
        return value is known
    if not _is_plain(value):
        return True
    if isinstance(value, (list, tuple)) and isinstance(known, (list, tuple)):
        return len(value) == len(known) and all(map(_same, value, known))
    return bool(value == known)
