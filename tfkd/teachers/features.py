"""Feature extraction: outputs of intermediate layers in one forward pass (hints).

A second functional model over the same layers would add nodes to the user's layers
to reach into nested models, and cannot reach into subclassed models. So `call` of
the chosen layers is wrapped while the model runs (in graph mode, while it is traced)
and restored afterwards: the user's model is not changed.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Iterable, Iterator
from typing import Any

import tensorflow as tf

from tfkd.networks.paths import find_layer
from tfkd.types import Structure

FINAL = "final_output"


class Taps:
    """A model that also returns the outputs of named layers.

    Args:
        model: any callable model; layers are looked up in `model.layers`.
        names: names or paths ("backbone/block3") of the layers to keep.
        side: "teacher" or "student", for messages.

    Raises:
        ValueError: for a layer that does not exist; close matches are listed.
    """

    def __init__(self, model: Any, names: Iterable[str], side: str):
        self.model = model
        self.side = side
        self.layers = {name: find_layer(model, name, side) for name in dict.fromkeys(names)}

    @property
    def outputs(self) -> list[str]:
        """Names of the returned outputs: the final output, then the layers."""
        return [FINAL, *self.layers]

    def static_shape(self, name: str) -> tuple[int | None, ...] | None:
        """Shape of an output, or None if it is nested or not known before the model runs."""
        source = self.model if name == FINAL else self.layers[name]
        try:
            shape = source.output_shape
        except (AttributeError, RuntimeError):
            return None
        is_one = isinstance(shape, tuple) and all(d is None or isinstance(d, int) for d in shape)
        return shape if is_one else None

    def __call__(self, x: Structure, **kwargs: Any) -> dict[str, Any]:
        """Runs the model once; returns {"final_output": ..., name: ...}."""
        if not self.layers:
            return {FINAL: self.model(x, **kwargs)}
        with _recording(self.layers.values()) as record:
            outputs = {FINAL: self.model(x, **kwargs)}
        for name, layer in self.layers.items():
            outputs[name] = self._only(name, record.calls[id(layer)])
        return outputs

    def _only(self, name: str, calls: list[Any]) -> Any:
        if len(calls) == 1:
            return calls[0]
        times = "never" if not calls else f"{len(calls)} times"
        raise ValueError(
            f"layer {name!r} of the {self.side} is called {times} in one forward pass; a feature "
            "must come from a layer that is called once, and not inside a tf.function of the "
            "model's own. Name a layer before or after it."
        )


class _Record:
    """Outputs of the layers in one forward pass, by id(layer).

    Calls in other graphs are ignored: Keras calls layers on placeholders when it
    builds a model from data, and tensors inside a tf.function can't be used outside.
    """

    def __init__(self, layers):
        self.graph = _current_graph()
        self.calls: dict[int, list[Any]] = {id(layer): [] for layer in layers}

    def add(self, layer, outputs):
        if id(layer) in self.calls and _current_graph() is self.graph:
            self.calls[id(layer)].append(outputs)


def _current_graph() -> Any:
    return None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()


class _Active(threading.local):
    """Active records of this thread: the replicas of a strategy run in separate threads."""

    def __init__(self):
        self.records: list[_Record] = []


_ACTIVE = _Active()
_LOCK = threading.Lock()
# id(layer) -> (number of active forward passes, `call` in the instance's dict or None)
_WRAPPED: dict[int, tuple[int, Any]] = {}


@contextlib.contextmanager
def _recording(layers: Iterable[Any]) -> Iterator[_Record]:
    layers = list({id(layer): layer for layer in layers}.values())
    record = _Record(layers)
    for layer in layers:
        _wrap(layer)
    _ACTIVE.records.append(record)
    try:
        yield record
    finally:
        _ACTIVE.records.remove(record)
        for layer in layers:
            _unwrap(layer)


def _wrap(layer: Any) -> None:
    with _LOCK:
        users, own = _WRAPPED.get(id(layer), (0, None))
        if users == 0:
            own = vars(layer).get("call")
            original = layer.call

            @functools.wraps(original)
            def call(*args, **kwargs):
                outputs = original(*args, **kwargs)
                for record in _ACTIVE.records:
                    record.add(layer, outputs)
                return outputs

            # Bypasses Keras's attribute tracking: the wrapper is not part of the layer.
            vars(layer)["call"] = call
        _WRAPPED[id(layer)] = (users + 1, own)


def _unwrap(layer: Any) -> None:
    with _LOCK:
        users, own = _WRAPPED.pop(id(layer))
        if users > 1:
            _WRAPPED[id(layer)] = (users - 1, own)
        elif own is None:
            vars(layer).pop("call")
        else:
            vars(layer)["call"] = own
