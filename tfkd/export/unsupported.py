"""Operations that a file format lacks: the layers that hold them, and where to split the model."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

import tf_keras as keras

from tfkd.networks.call_graph import graph_of
from tfkd.networks.paths import walk

_MOST = 6  # operations or layers in a message
# An operation in a message of TensorFlow's compiler: its kind and its name in the graph.
_LOCATED = re.compile(r'fused\["(\w+):?", "([^"@]+)@[^"]*"\] at callsite')
_CALLS = ("PartitionedCall", "StatefulPartitionedCall")


def message(
    model: keras.Model, format_name: str, found: Mapping[str, Iterable[str]], others: str
) -> str:
    """Names the layers with operations that a format lacks, and the ways out.

    Args:
        model: the model.
        format_name: "TFLite" or "ONNX".
        found: names of nodes in TensorFlow's graph by kind of operation.
        others: the exporters that may take the model, for the message.
    """
    kinds, last = [], None
    for kind, nodes in list(found.items())[:_MOST]:
        layers = list(dict.fromkeys(filter(None, (layer_of(model, node) for node in nodes))))
        last = next(reversed(layers), last)
        where = ", ".join(map(repr, layers[:_MOST]))
        kinds.append(f"{kind} (in {where})" if layers else kind)
    more = f" and {len(found) - _MOST} more" if len(found) > _MOST else ""
    return (
        f"`model`: {format_name} can't express these operations of {model.name!r}: "
        f"{', '.join(kinds)}{more}. Replace the layers that compute them, or export with {others}."
        f"{split_at(model, last)}"
    )


def split_at(model: keras.Model, path: str | None, before: bool = False) -> str:
    """Says how to split a model after a layer, or before it; "" for a subclassed model."""
    if path is None or graph_of(model) is None:
        return ""
    if path not in {layer.name for layer in model.layers}:
        return f" Or split the model at {path!r}: build it without that nested model."
    at = f"model.get_layer({path!r})"
    if before:
        return f" Or export what is before that layer: keras.Model(model.inputs, {at}.input)."
    return (
        f" Or split the model there: export keras.Model({at}.output, model.outputs), and run "
        f"keras.Model(model.inputs, {at}.output) before it. Other such layers, and inputs that go "
        "around them, become further inputs in the same way."
    )


def layer_of(model: keras.Model, node: str) -> str | None:
    """The path of the innermost layer in whose name scope a node is; None if there is none.

    Example:
        >>> dense = keras.layers.Dense(2, name="logits")
        >>> model = keras.Sequential([keras.Input((3,)), dense], name="m")
        >>> layer_of(model, "m/logits/MatMul"), layer_of(model, "m/Mul")
        ('logits', None)
    """
    paths = {path for path, _ in walk(model)}
    names = {path.rsplit("/", 1)[-1]: path for path in paths}  # of layers in subclassed models
    parts = node.split("/")[1:]
    scopes = ["/".join(parts[:end]) for end in range(len(parts), 0, -1)]
    # A layer that is called again has a scope with a number.
    for scope in [*scopes, *(re.sub(r"_\d+(?=/|$)", "", scope) for scope in scopes)]:
        if scope in paths:
            return scope
    return next((names[part] for part in reversed(parts) if part in names), None)


def in_compiler_text(text: str) -> dict[str, list[str]]:
    """The operations of which TensorFlow's compiler says that it has no form: kind → nodes."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if "is neither a custom op nor a flex op" not in line:
            continue
        kind, node = _kind_and_node(line)
        found.setdefault(kind, []).append(node)
    return found


def _kind_and_node(line: str) -> tuple[str, str]:
    lacking = re.search(r"'tf\.(\w+)' op", line)
    located = [pair for pair in _LOCATED.findall(line) if pair[0] not in _CALLS]
    kind, node = located[0] if located else ("", "")
    return (lacking[1] if lacking else kind), node


def plain_text(text: str, longest: int) -> str:
    """The errors in a message of TensorFlow's compiler without locations, cut to a length."""
    text = "; ".join(dict.fromkeys(_errors(text))) or text
    return text if len(text) <= longest else text[:longest] + " ..."


def _errors(text: str) -> Iterator[str]:
    for line in text.splitlines():
        if ": error: " in line:
            what = line.split(": error: ", 1)[1]
            yield re.sub(r"^loc\(.*?\)+: ", "", what).strip() if "loc(" in what else what.strip()
