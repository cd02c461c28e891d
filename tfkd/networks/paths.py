"""Layers of a model found by name, by path through nested models, or by pattern.

Every argument that names layers (`ignore`, `skip`, `drop`, `keep`, `freeze`, the layers of
losses and caches) is read here, so that an entry means the same in all of them. It is

* a name: "conv1", of a layer or nested model, at any depth;
* a path: "backbone/block2/conv1", or an end of one: "block2/conv1";
* a pattern of these with `*`, `?` or `[…]`, where `*` also stands for slashes: "stage1_*";
* or the layer itself.

A nested model stands for all layers in it, and tfmot's wrapper for the layer it wraps.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
from collections.abc import Iterable, Iterator
from typing import Any, TypeAlias

import tf_keras as keras

from tfkd import checks
from tfkd.networks import layer_weights

Entry: TypeAlias = str | keras.layers.Layer
Entries: TypeAlias = Entry | Iterable[Entry]


def layers_by_path(model: Any, prefix: str = "") -> dict[str, Any]:
    """All layers of a functional or Sequential model by path, nested models entered."""
    found = {}
    for layer in model.layers:
        path = prefix + layer.name
        found[path] = layer
        if hasattr(layer, "layers") and hasattr(layer, "get_layer"):
            found.update(layers_by_path(layer, f"{path}/"))
    return found


def fingerprint(model: Any) -> str:
    """SHA-256 of a model's layer names, classes and weight shapes (not of its values)."""
    rows = [
        (path, type(layer).__name__, [list(w.shape) for w in layer_weights.arrays(layer)])
        for path, layer in layers_by_path(model).items()
    ]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


# tfmot's wrappers rename what they wrap: the user asks by the original name.
WRAPPER_PREFIXES = ("quant_", "prune_low_magnitude_")


def walk(model: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(path, layer) of all layers of any model; whatever lists `layers` is entered."""
    for layer in getattr(model, "layers", ()):
        yield prefix + layer.name, layer
        yield from walk(layer, f"{prefix}{layer.name}/")


def leaves(model: Any) -> Iterator[tuple[str, Any]]:
    """(path, layer) of every layer that holds no others; wrappers go by what they wrap."""
    for path, layer in walk(model):
        if not getattr(layer, "layers", None):
            yield _unwrapped(path), layer


def entries(
    argument: str,
    given: Any,
    also: tuple[type, ...] = (),
    expected: str = "names of layers or patterns",
) -> list[Any]:
    """One entry or several as a list: strings, layers, or of a type in `also`.

    Raises:
        TypeError: for anything else.
    """
    kinds = (str, keras.layers.Layer, *also)
    if isinstance(given, (*kinds, bool)):
        given = [given]
    if not isinstance(given, Iterable) or isinstance(given, (bytes, dict)):
        raise checks.type_error(argument, expected, given)
    found = sorted(given, key=str) if isinstance(given, (set, frozenset)) else list(given)
    for entry in found:
        if not isinstance(entry, kinds) or isinstance(entry, bool):
            raise checks.type_error(argument, expected, entry)
    return found


def names_of(argument: str, given: Any) -> list[str]:
    """`entries` for what is stored and looked up later: a layer stands for its name."""
    return [getattr(entry, "name", entry) for entry in entries(argument, given)]


def fitting(entry: Any, paths: Iterable[str], model: Any = None, inside: bool = True) -> list[str]:
    """Those of `paths` that an entry names, in their order.

    Args:
        entry: a name, path, pattern or layer.
        paths: paths of layers, or of what is named like them.
        model: where a layer is looked for.
        inside: a nested model that is named stands for the paths inside it.
    """
    if isinstance(entry, str):
        return [path for path in paths if _goes_by(path, entry, inside)]
    own = {
        _unwrapped(path)
        for path, layer in walk(model)
        if layer is entry or getattr(layer, "layer", None) is entry
    }
    return [path for path in paths if not own.isdisjoint(_holders(_unwrapped(path), inside))]


def matching(
    argument: str,
    given: Any,
    paths: Iterable[str],
    model: Any = None,
    expected: str = "names of layers or patterns",
) -> list[str]:
    """Those of `paths` that one or several entries name, in their order.

    Raises:
        TypeError: for what is no entry.
        ValueError: for an entry that names none; near matches are listed.
    """
    paths = list(paths)
    found: set[str] = set()
    for entry in entries(argument, given, expected=expected):
        fits = fitting(entry, paths, model)
        if not fits:
            raise unmatched(argument, expected, entry, paths)
        found.update(fits)
    return [path for path in paths if path in found]


def unmatched(argument: str, expected: str, entry: Any, paths: Iterable[str]) -> ValueError:
    """Returns the error for an entry that names nothing, with near matches."""
    if isinstance(entry, keras.layers.Layer):
        received = f"the layer {entry.name!r}, which is not one of them"
        fix = checks.near_or_all(entry.name, paths)
        return ValueError(f"`{argument}`: expected {expected}, received {received}. {fix}")
    return checks.value_error(argument, expected, entry, checks.near_or_all(entry, paths))


def find_layer(model: Any, name: str, side: str) -> Any:
    """Finds the one layer that an entry names.

    A layer at that very path comes before those deeper down that also go by the name. Where
    there is none, the attribute of a model may hold it: models that are made inside a
    constructor name their layers anew each time, but not the attributes that hold them
    (`feature_pyramid` of keras-cv's RetinaNet).

    Raises:
        ValueError: if there is none, or more than one; near matches are listed.
    """
    layers = dict(walk(model))
    found = (
        [path for path in layers if path == name]
        or [path for path in layers if _unwrapped(path) == name]
        or fitting(name, layers, model, inside=False)
    )
    if len({id(layers[path]) for path in found}) == 1:
        return layers[found[0]]
    layer = vars(model).get(name) if isinstance(model, keras.Model) else None
    if isinstance(layer, keras.layers.Layer):
        return layer
    argument = f"{side}_layer_name"
    if found:
        fix = f"Give the path of one. {checks.listing(found)}"
        raise checks.value_error(argument, f"the name of one layer of the {side}", name, fix)
    if not layers:
        expected = f"None, since the {side} has no layers to name"
        raise checks.value_error(argument, expected, name)
    raise unmatched(argument, f"the name of a layer of the {side}", name, layers)


def _unwrapped(path: str) -> str:
    """The path without the prefixes of wrappers."""
    names = path.split("/")
    for prefix in WRAPPER_PREFIXES:
        names = [name.removeprefix(prefix) for name in names]
    return "/".join(names)


def _holders(path: str, inside: bool) -> list[str]:
    """The path, and, if `inside`, those of the models that hold the layer."""
    names = path.split("/")
    return ["/".join(names[:end]) for end in range(1 if inside else len(names), len(names) + 1)]


def _goes_by(path: str, entry: str, inside: bool) -> bool:
    holders = {h for form in (path, _unwrapped(path)) for h in _holders(form, inside)}
    names = (holder.split("/") for holder in holders)
    ends = ("/".join(parts[start:]) for parts in names for start in range(len(parts)))
    return any(end == entry or fnmatch.fnmatchcase(end, entry) for end in ends)
