"""Layers of a model found by name, by path through nested models, or by pattern."""

from __future__ import annotations

import fnmatch
import hashlib
import json
from collections.abc import Iterator
from typing import Any

import tf_keras as keras

from tfkd import checks
from tfkd.networks import layer_weights


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


def find_layer(model: Any, name: str, side: str) -> Any:
    """Finds a layer by name, or by a path through nested models and wrappers.

    A name that only one layer inside nested models has needs no path: models that are
    made inside a constructor are named anew when it runs again. So are layers, but the
    attribute that holds one (`feature_pyramid` of keras-cv's RetinaNet) is not.

    Raises:
        ValueError: if there is none; near matches are listed.
    """
    ways = (find(model, name) for find in (_find, _find_inside, _find_attribute))
    layer = next((found for found in ways if found is not None), None)
    if layer is None:
        paths = layer_paths(model)
        if not paths:
            raise checks.value_error(
                f"{side}_layer_name", f"None, since the {side} has no layers to name", name
            )
        checks.known_name(f"{side}_layer_name", name, paths, f"the {side}")
    return layer


def _find(model: Any, name: str) -> Any:
    children = {layer.name: layer for layer in getattr(model, "layers", ())}
    for candidate in (name, *(prefix + name for prefix in WRAPPER_PREFIXES)):
        if candidate in children:
            return children[candidate]
    # A layer's own name may hold a slash: try every split.
    parts = name.split("/")
    for cut in range(1, len(parts)):
        head, rest = "/".join(parts[:cut]), "/".join(parts[cut:])
        if head in children:
            found = _find(children[head], rest)
            if found is not None:
                return found
    return None


def _find_inside(model: Any, name: str) -> Any:
    """The layer of nested models that has the name, if there is one alone."""
    nested = [layer for layer in getattr(model, "layers", ()) if hasattr(layer, "layers")]
    found = [find(inner, name) for inner in nested for find in (_find, _find_inside)]
    each = {id(layer): layer for layer in found if layer is not None}
    return next(iter(each.values())) if len(each) == 1 else None


def _find_attribute(model: Any, name: str) -> Any:
    layer = vars(model).get(name) if isinstance(model, keras.Model) else None
    return layer if isinstance(layer, keras.layers.Layer) else None


def layer_paths(model: Any, prefix: str = "") -> list[str]:
    """Every name that `find_layer` accepts, nested ones as paths."""
    paths = []
    for layer in getattr(model, "layers", ()):
        paths.append(prefix + layer.name)
        if hasattr(layer, "layers"):
            paths.extend(layer_paths(layer, f"{prefix}{layer.name}/"))
    return paths


def leaves(model: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(path, layer) of every layer that holds no others; wrappers go by what they wrap."""
    for layer in model.layers:
        name = layer.name
        for wrapper in WRAPPER_PREFIXES:
            name = name.removeprefix(wrapper)
        if getattr(layer, "layers", None):
            yield from leaves(layer, f"{prefix}{name}/")
        else:
            yield prefix + name, layer


def matches(path: str, pattern: str) -> bool:
    parts = path.split("/")
    wholes = ["/".join(parts[: n + 1]) for n in range(len(parts))]
    return any(fnmatch.fnmatchcase(text, pattern) for text in (*wholes, parts[-1]))
