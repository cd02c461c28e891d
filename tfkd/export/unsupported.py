"""Operations that a file format lacks: the layers that hold them, and where to split the model."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping

import tensorflow as tf
import tf_keras as keras

from tfkd.networks.call_graph import Call, CallGraph, Key, Ref, graph_of
from tfkd.networks.layer_parts import calls_anywhere
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
    said, layers = listed(model, found)
    return (
        f"`model`: {format_name} can't express these operations of {model.name!r}: {said}. Replace "
        f"the layers that compute them, or export with {others}.{split_at(model, layers)}"
    )


def listed(model: keras.Model, found: Mapping[str, Iterable[str]]) -> tuple[str, list[str | None]]:
    """Kinds of operations with their layers as text, and the paths of all these layers.

    Args:
        model: the model.
        found: as in `message`.
    """
    kinds, everywhere = [], []
    for kind, nodes in found.items():
        layers = list(dict.fromkeys(layer_of(model, node) for node in nodes))
        everywhere += layers
        where = ", ".join(repr(layer) for layer in layers[:_MOST] if layer)
        kinds.append(f"{kind} (in {where})" if where else kind)
    more = f" and {len(kinds) - _MOST} more" if len(kinds) > _MOST else ""
    return ", ".join(kinds[:_MOST]) + more, everywhere


def split_at(model: keras.Model, paths: Iterable[str | None]) -> str:
    """Says in code how to split layers off a functional model, so that the rest can be exported.

    Args:
        model: the model.
        paths: the paths of the layers; None for one that is not known.

    Returns:
        A sentence; "" if the model can't be split there.
    """
    graph = graph_of(model)
    if graph is None:
        return ""
    names = {_top(graph, path) for path in paths}
    off = {key for key, call in graph.calls.items() if call.name in names or _writes_texts(call)}
    if None in names or not off:
        return ""
    others = [number for number, ref in enumerate(graph.outputs) if ref[:2] not in off]
    whole = len(others) == len(graph.outputs)
    kept = ["*model.outputs"] if whole else [f"model.outputs[{number}]" for number in others]
    ends = [graph.outputs[number] for number in others]
    read = [ref for key in off for ref in graph.calls[key].inputs if ref[:2] not in off]
    if not _needed(graph, [*read, *ends], off) & off:
        computed = {ref for ref in read if not graph.maker(ref).is_input}
        last = [_inputs(call, computed) for key, call in graph.calls.items() if key in off]
        outputs = _together([*itertools.chain(*last), *kept])
        said = ", ".join(map(repr, dict.fromkeys(key[0] for key in graph.calls if key in off)))
        rest = f"compute {said} on its outputs."
        return _split(f"keras.Model(model.inputs, {outputs})", rest) if computed else ""
    after = _needed(graph, ends, off)
    if all(key in off or graph.calls[key].is_input for key in after):
        return ""
    cut = [_outputs(call) for key, call in graph.calls.items() if key in after & off]
    around = [
        f"model.inputs[{number}]"
        for number, tensor in enumerate(model.inputs)
        if graph.ref(tensor)[:2] in after
    ]
    return _split(
        f"keras.Model({_together([*cut, *around])}, {_together(kept)})",
        f"run keras.Model(model.inputs, {_together(cut)}) before it.",
    )


def _split(export: str, rest: str) -> str:
    return f" Or split the model there: export {export}, and {rest}"


def _writes_texts(call: Call) -> bool:
    return not call.is_input and any(tensor.dtype == tf.string for tensor in call.makes)


def _top(graph: CallGraph, path: str | None) -> str | None:
    """The layer of a model in which the layer at a path is; None if there is none."""
    parts = (path or "").split("/")
    starts = ("/".join(parts[:end]) for end in range(len(parts), 0, -1))
    return next((start for start in starts if start in graph.layers), None)


def _needed(graph: CallGraph, ends: Iterable[Ref], off: set[Key]) -> set[Key]:
    """The calls that tensors depend on, up to those in `off`, which are included."""
    found: set[Key] = set()
    todo = [ref[:2] for ref in ends]
    while todo:
        key = todo.pop()
        if key not in found:
            found.add(key)
            todo += [ref[:2] for ref in graph.calls[key].inputs if key not in off]
    return found


def _code(call: Call, which: str) -> str:
    """Code for the inputs or outputs of a call."""
    calls, layer = calls_anywhere(call.layer), f"model.get_layer({call.name!r})"
    # The `input` and `output` of a nested model are its own.
    if len(calls) == 1 and not isinstance(call.layer, keras.Model):
        return f"{layer}.{which}"
    number = next(number for number, node in enumerate(calls) if node is call.node)
    return f"{layer}.get_{which}_at({number})"


def _inputs(call: Call, wanted: set[Ref]) -> list[str]:
    """Code for those inputs of a call that are wanted; it starts with "*" if they are several."""
    code, count = _code(call, "input"), len(call.inputs)
    if wanted.issuperset(call.inputs):
        return [code if count == 1 else f"*{code}"]
    return [f"{code}[{number}]" for number, ref in enumerate(call.inputs) if ref in wanted]


def _outputs(call: Call) -> str:
    """Code for the outputs of a call; it starts with "*" if they are several."""
    code = _code(call, "output")
    if isinstance(call.node.outputs, Mapping):
        return f"*{code}.values()"
    return code if len(call.makes) == 1 else f"*{code}"


def _together(parts: list[str]) -> str:
    """Code for one tensor, or a list of several."""
    return parts[0].lstrip("*") if len(parts) == 1 else f"[{', '.join(parts)}]"


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
