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
    specs = None if saved is None else saved[0][0]
    if input_shape is not None:
        return _given_specs(specs, input_shape, batch)
    fix = "Pass input_shape=(height, width, channels), without the batch axis."
    if specs is None:
        expected = "the shape of one example, since the model was never called"
        raise checks.value_error("input_shape", expected, None, fix)
    for spec in tf.nest.flatten(specs):
        if spec.shape.rank is None or None in tuple(spec.shape)[1:]:
            known = tuple(spec.shape)
            expected = f"the shape of one example, since the model leaves it open, {known}"
            raise checks.value_error("input_shape", expected, None, fix)
    return tf.nest.map_structure(
        lambda s: tf.TensorSpec((batch, *tuple(s.shape)[1:]), s.dtype, name=None), specs
    )


def _given_specs(specs: Any, input_shape: Any, batch: int) -> Any:
    def given(shape: Any, dtype: Any) -> tf.TensorSpec:
        return tf.TensorSpec((batch, *_one_shape(shape)), dtype)

    if specs is None or not isinstance(specs, (dict, list, tuple)):
        return given(input_shape, tf.float32 if specs is None else specs.dtype)
    if isinstance(specs, dict):
        if not isinstance(input_shape, dict) or set(input_shape) != set(specs):
            expected = f"a dict with keys {sorted(specs)}"
            raise checks.value_error("input_shape", expected, input_shape)
        return {k: given(input_shape[k], specs[k].dtype) for k in specs}
    if not isinstance(input_shape, (list, tuple)) or len(input_shape) != len(specs):
        expected = f"{len(specs)} shapes, one per input"
        raise checks.value_error("input_shape", expected, input_shape)
    pairs = zip(specs, input_shape, strict=True)
    return [given(shape, spec.dtype) for spec, shape in pairs]


def _one_shape(shape: Any) -> tuple[int, ...]:
    if not isinstance(shape, (list, tuple, tf.TensorShape)):
        raise checks.type_error("input_shape", "a tuple of integers", shape)
    return tuple(checks.positive_int("input_shape", size) for size in shape)


def follow(model: keras.Model, input_shape: InputShape | None = None) -> list[TracedLayer]:
    """Traces `model` and returns its layers in the order of their first call.

    Args:
        model: a built model.
        input_shape: shape of one example without the batch axis, or a list or dict of
            shapes for several inputs; None: the model's own input shape.

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
