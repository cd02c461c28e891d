"""What a layer knows: its weights, and what it keeps beside them.

Keras copies weights. Some layers compute with more: `Normalization` with constants
that `finalize_state` makes of its weights, lookup layers with a table, `Discretization`
with a list of bounds that its config leaves out. Whatever copies layers does
it here, so that none of this is left behind.
"""

from __future__ import annotations

import copy as copying
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from tfkd.networks.layer_weights import arrays

_Preprocessing = keras.layers.experimental.preprocessing.PreprocessingLayer
_Lookups = (keras.layers.StringLookup, keras.layers.IntegerLookup)
_TABLES = (tf.lookup.StaticHashTable, tf.lookup.experimental.MutableHashTable)
# Weights of layers that can be adapted; those with fixed bounds or words don't have them.
_FOR_ADAPTING = ("summary", "num_documents")
# What `complete` gives a layer on purpose.
_GIVEN = ("input_bin_boundaries", "num_bins", "input_vocabulary", "input_idf_weights")


def complete(config: dict[str, Any], layer: Any, fixed: bool = False) -> dict[str, Any]:
    """Puts into a config what the layer learned and a copy must know when it is first called.

    The width of a `Discretization` is that of its bounds, which Keras leaves out. `copy`
    makes the new layer one that can be adapted again.

    Args:
        config: what `layer.get_config()` gave; changed in place.
        layer: a layer or model.
        fixed: put words in too, so that the config says all that the layer knows, also
            in another process. Bounds and words of the new layer are then arguments, as if
            they had been given.

    Returns:
        The config.
    """
    parts = config.get("layers")
    if isinstance(parts, (list, tuple)) and isinstance(layer, keras.Model):
        # Sequential hides its InputLayer.
        layers = keras.Model.layers.fget(layer)
        known = {child.name: child for child in layers}
        for number, part in enumerate(parts):
            own = layers[number].name if len(parts) == len(layers) else None
            name = part["config"].get("name", own)
            if name in known:
                _put_name(part["config"], known[name])
                complete(part["config"], known[name], fixed)
    elif isinstance(config.get("layer"), dict) and hasattr(layer, "layer"):
        complete(config["layer"]["config"], layer.layer, fixed)
    elif isinstance(layer, keras.layers.Discretization):
        if layer.input_bin_boundaries is None and layer.bin_boundaries:
            config.update(bin_boundaries=[float(b) for b in layer.bin_boundaries], num_bins=None)
    elif isinstance(layer, keras.layers.Rescaling):
        # Arrays, which Keras writes into a model's config and can't read from there.
        for key in ("scale", "offset"):
            config[key] = np.asarray(getattr(layer, key)).tolist()
    elif isinstance(layer, (*_Lookups, keras.layers.TextVectorization)):
        words = getattr(layer, "_lookup_layer", layer)
        # The file that words were read from may be gone.
        if fixed or isinstance(words.input_vocabulary, str):
            _put_words(config, words)
    return config


def _put_name(config: dict[str, Any], layer: Any) -> None:
    """Gives a layer without a `get_config` its name, if it takes one: copies go by names."""
    if "name" not in config:
        takes = inspect.signature(type(layer).__init__).parameters.values()
        if any(one.name == "name" or one.kind is one.VAR_KEYWORD for one in takes):
            config["name"] = layer.name


def learned_first(model: Any) -> bool:
    """True for a model with layers that `complete` has something to say about."""
    kinds = (keras.layers.Discretization, keras.layers.TextVectorization, *_Lookups)
    return any(isinstance(part, kinds) for part in model._flatten_layers())


def _put_words(config: dict[str, Any], layer: Any) -> None:
    if not int(layer.lookup_table.size()):
        return  # it was never adapted
    words = layer.get_vocabulary()
    config["vocabulary"] = [w.item() if isinstance(w, np.generic) else w for w in words]
    if layer.output_mode == "tf_idf":
        config["idf_weights"] = layer.idf_weights.numpy()[: len(words)].tolist()


def copy(
    source: Any, target: Any, change: Callable[[Any], Any] | None = None, fixed: bool = False
) -> None:
    """Gives a layer or model what another one knows: weights, tables, bounds, constants.

    Args:
        source: a built layer or model; not changed.
        target: another that was built from its config (see `complete`).
        change: weight of `source` → the value that its copy gets; None: the same.
        fixed: as for `complete`.

    Raises:
        ValueError: if they have other weights, or `source` keeps something that can't be
            copied; the layer is named.

    Example:
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


def check_file(model: Any) -> None:
    """Raises if a layer keeps what neither its config nor its weights hold: a file has no more.

    Args:
        model: a built model, whose own layers were made with `complete(..., fixed=True)`.

    Raises:
        ValueError: that names the layer.
    """
    for old in model._flatten_layers():
        if not _has_state(old) or type(old).__module__.startswith("tf_keras."):
            continue
        try:
            new = type(old).from_config(old.get_config())
            new.build(old._build_input_shape)
            new.built = True  # Keras says it after a call; a build of one's own may not.
            for weight, value in zip(arrays(new), arrays(old), strict=True):
                weight.assign(value)
            finalize(new)
        except Exception as error:
            raise _not_copied(old, f"which can't ({error!r})") from error
        name = next((name for name, _, _ in _differences(old, new)), None)
        if name is not None:
            raise _not_copied(old, f"which keeps {name!r} beside them")


def forgotten(model: Any) -> Any:
    """A layer of which Keras's own `.keras` files lose what it learned, or None.

    A `Discretization` comes back without its bounds, and Keras calls `finalize_state` after
    reading only for layers whose `load_own_variables` does it.

    Example:
        >>> bins = keras.layers.Discretization(num_bins=2, name="bins")
        >>> bins.adapt(np.arange(10.0)[:, None])
        >>> forgotten(keras.Sequential([keras.Input((1,)), bins])).name
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


def tables(model: Any) -> list[Any]:
    """The layers of a model that look words or numbers up in a table."""

    def has_table(part: Any) -> bool:
        return any(isinstance(value, _TABLES) for value in vars(part).values())

    flat = list(model._flatten_layers())
    # A TextVectorization holds a StringLookup, which the user knows nothing of.
    inside = {id(getattr(part, "_lookup_layer", None)) for part in flat}
    return [
        part
        for part in flat
        if (has_table(part) or hasattr(part, "_lookup_layer")) and id(part) not in inside
    ]


def finalize(layer: Any) -> None:
    """Lets layers make of their weights what they compute with, after these were assigned."""
    for part in layer._flatten_layers():
        part.finalize_state()


def _with_state(source: Any, target: Any) -> Iterator[tuple[Any, Any]]:
    """The layers in a layer that know more than their weights, and their copies."""
    olds = [part for part in source._flatten_layers() if _has_state(part)]
    if olds:
        news = [part for part in target._flatten_layers() if _has_state(part)]
        if [type(part) for part in olds] != [type(part) for part in news]:
            raise _not_copied(olds[0], "whose copy is not found in the new model")
        yield from zip(olds, news, strict=True)


def _has_state(layer: Any) -> bool:
    own = type(layer).finalize_state is not keras.layers.Layer.finalize_state
    return own or any(isinstance(value, _TABLES) for value in vars(layer).values())


def _not_copied(layer: Any, reason: str) -> ValueError:
    return ValueError(
        "`model`: expected layers that can be built again from their config, received "
        f"{layer.name!r} ({type(layer).__name__}), {reason}. Give it a get_config that holds all "
        "arguments of its constructor, and keep what it learns in weights (add_weight), of which "
        "finalize_state makes the rest."
    )


def _copy_tables(old: Any, new: Any) -> None:
    """Lookup tables, which can't be changed once they are filled."""
    for name, table in list(vars(old).items()):
        if not isinstance(table, tf.lookup.StaticHashTable) or not int(table.size()):
            continue  # Words that were never adapted.
        known = getattr(new, name, None)
        if not isinstance(known, tf.lookup.StaticHashTable):
            raise _not_copied(old, f"whose copy has no table {name!r}")
        with tf.init_scope():
            content = tf.lookup.KeyValueTensorInitializer(*table.export())
            setattr(new, name, tf.lookup.StaticHashTable(content, table.default_value))


def _make_adaptable(old: Any, new: Any) -> None:
    """Makes of bounds that were given bounds that were learned, with the weight they are of."""
    bins = isinstance(old, keras.layers.Discretization)
    if bins and old.input_bin_boundaries is None and new.input_bin_boundaries is not None:
        new.input_bin_boundaries, new.num_bins = None, old.num_bins
        with tf.name_scope(new.name):
            new.build(new._build_input_shape)


def _copy_rest(old: Any, new: Any, resized: bool) -> None:
    """What a layer that makes something of its weights keeps beside them."""
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
    """Attributes of a layer that its copy does not have as it does: name, value, the other."""
    keras_own = type(old).__module__.startswith("tf_keras.")
    for name, value in vars(old).items():
        known = vars(new).get(name)
        if isinstance(value, _TABLES):
            # A layer with fixed words counts none.
            if not (keras_own and known is None) and not _same_table(value, known):
                yield name, value, known
            continue
        # Keras's own attributes of other kinds are not what a layer learned.
        others = not (keras_own or name.startswith("_") or callable(value))
        learned = _is_array(value) or (others and (_is_plain(value) or known is None))
        if learned and name not in _GIVEN and not _same(value, known):
            yield name, value, known


def _same_table(value: Any, known: Any) -> bool:
    if not isinstance(known, _TABLES):
        return False
    tables = [
        dict(zip(*(part.numpy().tolist() for part in table.export()), strict=True))
        if int(table.size())
        else {}
        for table in (value, known)
    ]
    return tables[0] == tables[1]


def _is_array(value: Any) -> bool:
    """True for an array or a tensor with values; not for a variable."""
    if isinstance(value, tf.Variable) or not hasattr(value, "numpy"):
        return isinstance(value, np.ndarray)
    return tf.is_tensor(value) and value.dtype not in (tf.resource, tf.variant)


def _is_plain(value: Any) -> bool:
    """True for numbers, text and arrays, and lists and dicts of these."""
    if isinstance(value, dict):
        return all(_is_plain(item) for item in value.values())
    if isinstance(value, (list, tuple)):
        return all(_is_plain(item) for item in value)
    plain = (bool, int, float, complex, str, bytes, np.generic, type(None))
    return isinstance(value, plain) or _is_array(value)


def _same(value: Any, known: Any) -> bool:
    """True for equal arrays and plain values; what can't be compared is taken as equal."""
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
