"""Keras models as `tf.function`s of named tensors, and the checks of models before export."""

from __future__ import annotations

import contextlib
import functools
import keyword
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from tfkd import checks
from tfkd.example_inputs import Input
from tfkd.export.converter import quiet
from tfkd.formats.batching import chunks, joined
from tfkd.formats.forks import check_tensorflow
from tfkd.networks import accept, layer_state
from tfkd.networks.call_graph import CallGraph, graph_of
from tfkd.networks.layer_parts import free_name, parts
from tfkd.types import Structure

_CHUNK = 64  # Examples per call of the Keras model, which limits memory.
_SPLIT = (
    "Split the model after the layer that reads words: look them up in Python, and pass "
    "keras.Model(model.get_layer(NEXT).input, model.outputs), where NEXT is the layer after it."
)


def check_runnable(
    model: keras.Model, finite: bool = False, float32: str | None = None
) -> keras.Model:
    """Checks that a model is a built tf_keras model without state, and returns it.

    Args:
        model: what the user passed.
        finite, float32: as in `accept.check_model`.

    Raises:
        TypeError: if it is not a tf_keras model.
        ValueError: if it is not built or has stateful recurrent layers; or as `check_model`.
    """
    model = accept.check_model("model", model, accept.CALLED, finite, float32)
    recurrent = [part for part in parts(model) if isinstance(part, keras.layers.RNN)]
    stateful = [one.name for one in recurrent if one.stateful]
    if stateful:
        fix = (
            "A file answers each call by itself. Build them with stateful=False (the weights "
            "fit); to carry the state from call to call, make it an input and an output of the "
            "model: `initial_state` and `return_state=True`."
        )
        expected, received = "recurrent layers with stateful=False", ", ".join(stateful)
        raise checks.value_error("model", expected, received, fix)
    return model


def check_exportable(model: keras.Model, float32: str | None = None) -> keras.Model:
    """Checks that a file can be made of a model, and returns it.

    Args:
        model: what the user passed.
        float32: as in `accept.check_model`.

    Raises:
        TypeError, ValueError: as `check_runnable`; ValueError also if a weight is NaN or
            infinite, or the model computes in half precision or takes text.
    """
    model = check_runnable(model, finite=True, float32=float32)
    layers = [part for part in parts(model) if isinstance(part, keras.layers.Layer)]
    low = sorted({one.compute_dtype for one in layers} & {"float16", "bfloat16"})
    if low:
        fix = (
            "Build it again under the policy 'float32' and copy the weights: "
            "`plain.set_weights(model.get_weights())`."
        )
        raise checks.value_error("model", "a model that computes in float32", low[0], fix)
    specs = tf.nest.flatten(model.save_spec()[0][0])
    texts = [spec.name for spec in specs if spec.dtype.name == "string"]
    if texts:
        raise checks.value_error("model", "inputs of numbers", f"text in {texts[0]!r}", _SPLIT)
    return model


def is_quantized(model: object) -> bool:
    """True for a `QuantizedModel`; told by class name, so that float models don't need tfmot."""
    return any(c.__name__ == "QuantizedModel" for c in type(model).__mro__)


def exportable(
    model: keras.Model, target: str, float32: str | None = None
) -> tuple[NamedFunction, NamedFunction]:
    """Checks a model; returns the function to compare a file with, and that to convert.

    They are the same, except that a quantized model is converted in its deployed form.

    Args:
        model: what the user passed.
        target: target of a quantized model, "tflite" or "tensorrt".
        float32: name of what accepts float32 only, as in `accept.check_model`.

    Raises:
        TypeError, ValueError: as `check_exportable`; if a layer has a lookup table; if a
            quantized model is not calibrated or was made for another target.
        RuntimeError: if TensorFlow was used before this process was forked: tracing
            would hang.
    """
    check_tensorflow()
    model = check_exportable(model, float32)
    for layer in layer_state.tables(model):
        received = f"{layer.name!r}, a {type(layer).__name__}, which looks them up in a table"
        raise checks.value_error("model", "layers that compute with numbers", received, _SPLIT)
    plain = model
    if is_quantized(model):
        from tfkd.quantization.deploying import deployed

        plain = deployed(model, target)  # raises unless calibrated, in better words than tracing
    graph = NamedFunction(model)
    return graph, graph if plain is model else NamedFunction(plain)


def _unique_names(names: Sequence[str]) -> list[str]:
    """Turns names into unique Python identifiers, as the arguments of a signature must be."""
    found: list[str] = []
    for name in names:
        name = re.sub(r"\W", "_", name)
        if not name.isidentifier() or keyword.iskeyword(name):
            name = f"x_{name}"
        found.append(free_name(name, found))
    return found


class NamedFunction:
    """A model in inference mode as a function from named inputs to named outputs.

    Args:
        model: a model that `check_runnable` accepts.

    Attributes:
        model: the model.
        inputs: the inputs with name, shape and dtype.
        outputs: names of the outputs.

    Example:
        >>> dense = keras.layers.Dense(3, name="logits")
        >>> graph = NamedFunction(keras.Sequential([keras.Input((4,), name="x"), dense]))
        >>> graph.predict({"x": np.ones((5, 4), "float32")})["logits"].shape
        (5, 3)
    """

    def __init__(self, model: keras.Model):
        self.model = model
        args, _ = model.save_spec()
        self._structure = args[0]
        specs = tf.nest.flatten(self._structure)
        names = getattr(model, "input_names", None) or [s.name for s in specs]
        names = _unique_names([n or "input" for n in names])
        self.inputs = tuple(map(Input.of, names, specs))
        self.outputs: list[str] = []
        self._open = self.function(None)
        with quiet():
            self._open.get_concrete_function()

    def order(self) -> dict[str, list[str]]:
        """Names of the inputs and outputs in the model's order, for the manifest of a file."""
        return {"inputs": [one.name for one in self.inputs], "outputs": list(self.outputs)}

    @functools.cached_property
    def layers(self) -> tuple[Any, ...]:
        """All layers and other submodules of the model, nested ones included."""
        return parts(self.model)

    @functools.cached_property
    def calls(self) -> CallGraph | None:
        """The graph of the model's calls; None for a subclassed model."""
        return graph_of(self.model)

    def function(self, batch_size: int | None) -> tf.types.experimental.PolymorphicFunction:
        """A `tf.function` of the inputs in order that returns a dict of outputs."""
        signature = [
            tf.TensorSpec([batch_size, *(None if s < 0 else s for s in i.shape)], i.dtype, i.name)
            for i in self.inputs
        ]

        @tf.function(input_signature=signature)
        def forward(*tensors):
            return self._named(self.call(tensors))

        return forward

    def call(self, inputs: Sequence[tf.Tensor]) -> Structure:
        """The model's outputs, in its own structure, for its inputs in order."""
        return self.model(tf.nest.pack_sequence_as(self._structure, inputs), training=False)

    def _named(self, outputs: Any) -> dict[str, Any]:
        flat = tf.nest.flatten(outputs)
        names = getattr(self.model, "output_names", None)
        if isinstance(outputs, dict) and len(outputs) == len(flat):
            names = sorted(outputs)
        if not names or len(names) != len(flat):
            names = [f"output_{i}" for i in range(len(flat))]
        self.outputs = _unique_names(names)
        return dict(zip(self.outputs, flat, strict=True))

    @contextlib.contextmanager
    def unchanged(self) -> Iterator[None]:
        """Restores non-trainable variables that the model updates when it is called."""
        trained = {id(v) for v in self.model.trainable_variables}
        kept = [v for v in self.model.variables if id(v) not in trained and hasattr(v, "assign")]
        before = [variable.numpy() for variable in kept]
        try:
            yield
        finally:
            for variable, value in zip(kept, before, strict=True):
                if not np.array_equal(variable.numpy(), value, equal_nan=value.dtype.kind == "f"):
                    variable.assign(value)

    def predict(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Runs the Keras model on (N, ...) arrays by input name; returns float32 by output name.

        Raises:
            ValueError: if an output holds NaN or infinity.
        """
        parts = chunks({i.name: feeds[i.name] for i in self.inputs}, _CHUNK)
        with quiet():  # Compiling for XLA and retracing are logged.
            found = joined(self._open(*part.values()) for part in parts)
        whole = {name: found[name] for name in self.outputs}
        for name, value in whole.items():
            if not np.isfinite(value).all():
                raise checks.value_error(
                    "model", "finite outputs", f"NaN or infinity in output {name!r}"
                )
        return whole
