"""Traces the layer calls of a model on a symbolic batch of one, to count their MACs."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import tensorflow as tf
import tf_keras as keras

from tfkd import checks
from tfkd.costs import rules
from tfkd.networks.call_graph import is_network
from tfkd.networks.layer_parts import arrays, flat_layers

InputShape: TypeAlias = "Sequence[int | Sequence[int]] | Mapping[str, Sequence[int]]"
_LOCK = threading.Lock()  # one patch of `Layer.__call__` at a time


@dataclasses.dataclass
class TracedLayer:
    """What a trace records about one layer.

    Attributes:
        layer: the layer.
        name: its path.
        output_shape: shape of its first output, without the batch axis.
        products: the result of its cost rule for each call; None where the cost is unknown.
    """

    layer: keras.layers.Layer
    name: str
    output_shape: tuple[int | None, ...]
    products: list[rules.Products | None]


class _Recorder:
    """Records the layer calls of one trace while `watch` is active."""

    def __init__(self, root: keras.Model, batch: int):
        self.root = root
        self.batch = batch
        self.entries: dict[int, TracedLayer] = {}
        self._path: list[str] = []
        # For each container being traced: indices of the operations its children created.
        self._inside: list[list[int]] = []
        self._thread = threading.get_ident()
        self._quiet = False

    @contextlib.contextmanager
    def watch(self) -> Iterator[None]:
        """Patches `Layer.__call__`, which every layer call passes through."""
        original = keras.layers.Layer.__call__

        @tf.autograph.experimental.do_not_convert
        def call(layer, *args, **kwargs):
            run = lambda: original(layer, *args, **kwargs)  # noqa: E731
            if self._quiet or threading.get_ident() != self._thread:
                return run()
            if _is_symbolic(args, kwargs):
                # A Sequential model that was built from data infers its shapes again.
                with self._silence():
                    return run()
            return self._record(layer, args, kwargs, run)

        with _LOCK:
            keras.layers.Layer.__call__ = call
            try:
                yield
            finally:
                keras.layers.Layer.__call__ = original

    @contextlib.contextmanager
    def _silence(self) -> Iterator[None]:
        """Calls in this context are not recorded."""
        self._quiet = True
        try:
            yield
        finally:
            self._quiet = False

    def _record(
        self, layer: keras.layers.Layer, args: Any, kwargs: Any, run: Callable[[], Any]
    ) -> Any:
        graph = tf.compat.v1.get_default_graph()
        rule = rules.find(layer)
        begin = len(graph.get_operations())
        if rule is None and _is_container(layer):
            outputs, mine = self._enter(layer, run, graph, begin)
        else:
            with self._silence():
                outputs = run()
            if isinstance(layer, keras.layers.TextVectorization):
                _set_batch(outputs, self.batch)
            mine = graph.get_operations()[begin:]
        if self._inside:
            self._inside[-1].extend(range(begin, len(graph.get_operations())))
        call = rules.LayerCall(layer, _arguments(layer, args, kwargs), _shapes(outputs))
        if rule is not None:
            self._add(call, rule(call))
        elif not _is_container(layer):
            costly = bool(arrays(layer)) or rules.multiplies(mine)
            self._add(call, None if costly else ())
        elif _own_weights(layer) or rules.multiplies(mine):
            self._add(call, None)
        return outputs

    def _enter(
        self, layer: keras.layers.Layer, run: Callable[[], Any], graph: tf.Graph, begin: int
    ) -> tuple[Any, list[tf.Operation]]:
        """Runs a layer made of layers; returns its outputs and its own operations."""
        if layer is not self.root:
            self._path.append(layer.name)
        self._inside.append([])
        try:
            outputs = run()
        finally:
            children = set(self._inside.pop())
            if layer is not self.root:
                self._path.pop()
        operations = graph.get_operations()
        return outputs, [op for i, op in enumerate(operations) if i >= begin and i not in children]

    def _add(self, call: rules.LayerCall, products: rules.Products | None) -> None:
        shape = tuple(call.outputs[0])[1:] if call.outputs else ()
        path = "/".join([*self._path, call.layer.name])
        if products is not None:
            products = tuple((terms, outputs // self.batch) for terms, outputs in products)
        entry = TracedLayer(call.layer, path, shape, [])
        self.entries.setdefault(id(call.layer), entry).products.append(products)


def _set_batch(tensor: Any, batch: int) -> None:
    """Restores the batch size, which TensorFlow loses when it splits text into tokens."""
    if isinstance(tensor, tf.Tensor) and tensor.shape.rank:
        tensor.set_shape([batch, *tensor.shape[1:]])


def _is_symbolic(args: Any, kwargs: Any) -> bool:
    """True for a call on Keras tensors, which builds a functional model."""
    return any(keras.backend.is_keras_tensor(t) for t in _tensors((args, kwargs)))


def _tensors(value: Any) -> list[Any]:
    return [t for t in tf.nest.flatten(value) if hasattr(t, "shape") and hasattr(t, "dtype")]


def _shapes(value: Any) -> tuple[tuple[int | None, ...], ...]:
    """Shapes of all tensors in a nested structure, in order."""
    return tuple(tuple(t.shape) if t.shape.rank is not None else () for t in _tensors(value))


def _arguments(
    layer: keras.layers.Layer, args: Any, kwargs: Any
) -> dict[str, tuple[tuple[int | None, ...], ...]]:
    """Shapes of a call's tensor arguments, by the parameter names of `layer.call`."""
    try:
        bound = dict(inspect.signature(layer.call).bind_partial(*args, **kwargs).arguments)
    except TypeError:
        bound = {"inputs": args, **kwargs}
    named = {name: _shapes(value) for name, value in bound.items()}
    return {name: shapes for name, shapes in named.items() if shapes}


def _is_container(layer: keras.layers.Layer) -> bool:
    """True for a layer made of layers whose calls can be recorded one by one."""
    if isinstance(layer, keras.Model):
        return True
    if isinstance(layer, (keras.layers.Wrapper, keras.layers.RNN)):
        return False  # they call the inner layer in a loop, or not through `__call__`
    return bool(flat_layers(layer, include_self=False, deep=False))


def _own_weights(layer: keras.layers.Layer) -> bool:
    children = flat_layers(layer, include_self=False)
    held = {id(w) for child in children for w in arrays(child)}
    return any(id(w) not in held for w in arrays(layer))


@contextlib.contextmanager
def _kept_save_spec(model: keras.Model) -> Iterator[None]:
    """Restores the save spec (input shape of a SavedModel), which a first call would fix."""
    names = ("_saved_model_inputs_spec", "_saved_model_arg_spec")
    before = {name: getattr(model, name, None) for name in names}
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(model, name, value)


def _batch_of(model: keras.Model) -> int:
    """The batch size of the trace: 1, unless the model fixes its own."""
    return next((int(t.shape[0]) for t in getattr(model, "inputs", None) or () if t.shape[0]), 1)


def _specs(model: keras.Model, input_shape: InputShape | None, batch: int) -> Any:
    """Returns the nested `TensorSpec`s of a batch."""
    saved = model.save_spec()
    if saved is None:
        if input_shape is None:
            expected = "the shape of one example, since the model was never called"
            fix = "Pass input_shape=(height, width, channels), without the batch axis."
            raise checks.value_error("input_shape", expected, None, fix)
        return tf.TensorSpec((batch, *_sizes(input_shape)), tf.float32)
    specs = saved[0][0]
    inputs = _Inputs(model, specs)
    shapes = inputs.own() if input_shape is None else inputs.given(input_shape)
    made = zip(shapes, inputs.leaves, strict=True)
    flat = [tf.TensorSpec((batch, *shape), leaf.dtype) for shape, leaf in made]
    return tf.nest.pack_sequence_as(specs, flat)


def input_shapes(model: keras.Model, input_shape: InputShape) -> list[tuple[int, ...]]:
    """The shapes of `model.inputs` without the batch axis, from those that the user gave.

    Args:
        model: a functional model.
        input_shape: as in `follow`.

    Raises:
        TypeError, ValueError: if they do not match the model's inputs.
    """
    return _Inputs(model, model.save_spec()[0][0]).given(input_shape)


class _Inputs:
    """The inputs of a model that has been called: their specs, and names if they have any."""

    def __init__(self, model: keras.Model, specs: Any):
        self.leaves = tf.nest.flatten(specs)
        self.by_key = isinstance(specs, Mapping)
        names = sorted(specs) if self.by_key else getattr(model, "input_names", None) or []
        self.names = [str(name) for name in names] if len(names) == len(self.leaves) else []
        self._fixed = is_network(model)  # the layers of others may take other sizes
        self._shapes = [
            None if leaf.shape.rank is None else tuple(leaf.shape)[1:] for leaf in self.leaves
        ]

    def own(self) -> list[tuple[int, ...]]:
        """The shapes of the model's inputs without the batch axis, which must be fixed."""
        if any(shape is None or None in shape for shape in self._shapes):
            shown = [shape if shape is None else (None, *shape) for shape in self._shapes]
            expected = (
                "the shape of one example, since the model leaves sizes open, "
                f"{shown[0] if len(shown) == 1 else self._named(shown)}"
            )
            raise checks.value_error("input_shape", expected, None, self._example())
        return [shape for shape in self._shapes if shape is not None]

    def given(self, input_shape: Any) -> list[tuple[int, ...]]:
        """The shapes that the user gave, in order."""
        shapes = input_shape
        if isinstance(shapes, Mapping):
            if set(shapes) != set(self.names):
                expected = f"a dict with keys {self.names}" if self.names else "a list of shapes"
                raise checks.value_error("input_shape", expected, input_shape, self._example())
            shapes = [shapes[name] for name in self.names]
        elif len(self.leaves) == 1 and not _is_list_of_shapes(shapes):
            shapes = [shapes]
        elif self.by_key or not _is_list_of_shapes(shapes) or len(shapes) != len(self.leaves):
            expected = f"a shape for each of the {len(self.leaves)} inputs"
            raise checks.value_error("input_shape", expected, input_shape, self._example())
        found = [_sizes(shape) for shape in shapes]
        for sizes, own in zip(found, self._shapes, strict=True):
            if own is not None and not self._fit(own, sizes):
                expected = f"sizes that fit the model's {own}"
                raise checks.value_error("input_shape", expected, sizes, self._example())
        return found

    def _fit(self, own: tuple[int | None, ...], sizes: tuple[int, ...]) -> bool:
        if len(own) != len(sizes):
            return False
        return not self._fixed or all(a in (None, b) for a, b in zip(own, sizes, strict=True))

    def _example(self) -> str:
        """How to pass the shapes, with made-up sizes where the model leaves them open."""
        shapes = [
            "(height, width, channels)" if shape is None else tuple(size or 32 for size in shape)
            for shape in self._shapes
        ]
        code = shapes[0] if len(shapes) == 1 else self._named(shapes)
        return f"For example input_shape={code}, without the batch axis."

    def _named(self, values: list[Any]) -> Any:
        return dict(zip(self.names, values, strict=True)) if self.names else values


def _is_list_of_shapes(value: Any) -> bool:
    kinds = (list, tuple, tf.TensorShape)
    return isinstance(value, (list, tuple)) and any(isinstance(one, kinds) for one in value)


def _sizes(shape: Any) -> tuple[int, ...]:
    if not isinstance(shape, (list, tuple, tf.TensorShape)):
        raise checks.type_error("input_shape", "a tuple of integers", shape)
    return tuple(checks.positive_int("input_shape", size) for size in shape)


def follow(model: keras.Model, input_shape: InputShape | None = None) -> list[TracedLayer]:
    """Traces `model` and returns its layers in the order of their first call.

    Args:
        model: a built model.
        input_shape: shape of one example without the batch axis; for several inputs a dict
            of shapes by input name, or a list; None: the model's own input shape.

    Returns:
        One `TracedLayer` for each layer that has a cost rule or contains no layers.

    Raises:
        TypeError, ValueError: if the input shape is unknown and not given, or a given one
            does not match the model's inputs.
    """
    batch = _batch_of(model)
    specs = _specs(model, input_shape, batch)
    recorder = _Recorder(model, batch)
    mode = {"training": False} if "training" in inspect.signature(model.call).parameters else {}
    with _kept_save_spec(model), recorder.watch():
        tf.function(lambda x: model(x, **mode), autograph=False).get_concrete_function(specs)
    return list(recorder.entries.values())
