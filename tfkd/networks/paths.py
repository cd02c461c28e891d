"""Layer lookup by name, by path through nested models, or by glob pattern.

Every argument that names layers (`ignore`, `skip`, `drop`, `keep`, `freeze`, the layers of
losses and caches) is read here, so that an entry means the same in all of them. An entry is

* a name of a layer or nested model at any depth: "conv1";
* a path "backbone/block2/conv1", or the end of one: "block2/conv1";
* a pattern of these with `*`, `?` or `[…]`, in which `*` also matches slashes: "stage1_*";
* or the layer itself.

A nested model selects all layers in it, and a wrapper of tfmot the layer that it wraps.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
from collections.abc import Iterable, Iterator
from typing import Any, TypeAlias

import tf_keras as keras

from tfkd import checks
from tfkd.networks.layer_parts import arrays

Entry: TypeAlias = str | keras.layers.Layer
Entries: TypeAlias = Entry | Iterable[Entry]


def layers_by_path(model: keras.Model, prefix: str = "") -> dict[str, keras.layers.Layer]:
    """All layers of a functional or Sequential model by path, including those nested in it."""
    found = {}
    for layer in model.layers:
        path = prefix + layer.name
        found[path] = layer
        if hasattr(layer, "layers") and hasattr(layer, "get_layer"):
            found.update(layers_by_path(layer, f"{path}/"))
    return found


def fingerprint(model: keras.Model) -> str:
    """SHA-256 of a model's layer names, classes and weight shapes, but not of its values."""
    rows = [
        (path, type(layer).__name__, [list(w.shape) for w in arrays(layer)])
        for path, layer in layers_by_path(model).items()
    ]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


# tfmot's wrappers prefix the names of the layers they wrap; users ask by the original name.
WRAPPER_PREFIXES = ("quant_", "prune_low_magnitude_")


def walk(model: object, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (path, layer) for all layers of any model; objects with `layers` are entered."""
    for layer in getattr(model, "layers", ()):
        yield prefix + layer.name, layer
        yield from walk(layer, f"{prefix}{layer.name}/")


def leaves(model: keras.Model) -> Iterator[tuple[str, keras.layers.Layer]]:
    """Yields (path, layer) for every layer without sublayers; paths lack wrapper prefixes."""
    for path, layer in walk(model):
        if not getattr(layer, "layers", None):
            yield _unwrapped(path), layer


def entries(
    argument: str,
    given: object,
    also: tuple[type, ...] = (),
    expected: str = "names of layers or patterns",
) -> list[Any]:
    """Reads one or several entries as a list of strings, layers and objects of types `also`.

    Args:
        argument: name of the argument, for the message.
        given: what the user passed.
        also: further types that an entry may have.
        expected: description of an entry, for the message.

    Raises:
        TypeError: if an entry has another type.
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


def names_of(argument: str, given: Entries) -> list[str]:
    """`entries` for lookups later on: a layer is replaced by its name."""
    return [getattr(entry, "name", entry) for entry in entries(argument, given)]


def fitting(
    entry: Entry, paths: Iterable[str], model: keras.Model | None = None, inside: bool = True
) -> list[str]:
    """The elements of `paths` that an entry names, in their order.

    Args:
        entry: a name, path, pattern or layer.
        paths: paths of layers, or of anything with such paths.
        model: the model in which an entry that is a layer is looked up.
        inside: whether the name of a nested model also selects the paths inside it.
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
    given: Entries,
    paths: Iterable[str],
    model: keras.Model | None = None,
    expected: str = "names of layers or patterns",
) -> list[str]:
    """The elements of `paths` that one or several entries name, in their order.

    Raises:
        TypeError: if something given is not an entry.
        ValueError: if an entry matches nothing; the message lists near matches.
    """
    paths = list(paths)
    found: set[str] = set()
    for entry in entries(argument, given, expected=expected):
        fits = fitting(entry, paths, model)
        if not fits:
            raise unmatched(argument, expected, entry, paths)
        found.update(fits)
    return [path for path in paths if path in found]


def unmatched(argument: str, expected: str, entry: Entry, paths: Iterable[str]) -> ValueError:
    """Returns the error for an entry that matches nothing, with near matches."""
    if isinstance(entry, keras.layers.Layer):
        received = f"the layer {entry.name!r}, which is not one of them"
        fix = checks.near_or_all(entry.name, paths)
        return ValueError(f"`{argument}`: expected {expected}, received {received}. {fix}")
    return checks.value_error(argument, expected, entry, checks.near_or_all(entry, paths))


def find_layer(model: keras.Model, name: str, side: str) -> keras.layers.Layer:
    """Finds the single layer that a name, path or pattern selects.

    A layer at exactly that path takes precedence over deeper ones that match. If no layer
    matches, an attribute of the model by that name may hold it: layers made in a model's
    constructor get new names each time, the attributes that hold them do not
    (`feature_pyramid` of keras-cv's RetinaNet).

    Args:
        model: any model.
        name: a name, path or pattern.
        side: "teacher" or "student", for the message.

    Raises:
        ValueError: if no layer or more than one matches; the message lists near matches.
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
        raise checks.value_error(argument, f"None, since the {side} has no layers to name", name)
    raise unmatched(argument, f"the name of a layer of the {side}", name, layers)


def _unwrapped(path: str) -> str:
    """The path without the prefixes of tfmot's wrappers."""
    names = path.split("/")
    for prefix in WRAPPER_PREFIXES:
        names = [name.removeprefix(prefix) for name in names]
    return "/".join(names)


def _holders(path: str, inside: bool) -> list[str]:
    """The path itself and, if `inside`, the paths of the models that contain the layer."""
    names = path.split("/")
    return ["/".join(names[:end]) for end in range(1 if inside else len(names), len(names) + 1)]


def _goes_by(path: str, entry: str, inside: bool) -> bool:
    """Whether an entry matches a path, or an end of it, with or without wrapper prefixes."""
    holders = {h for form in (path, _unwrapped(path)) for h in _holders(form, inside)}
    names = (holder.split("/") for holder in holders)
    ends = ("/".join(parts[start:]) for parts in names for start in range(len(parts)))
    return any(end == entry or fnmatch.fnmatchcase(end, entry) for end in ends)
