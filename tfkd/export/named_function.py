"""Keras models as `tf.function`s of named tensors, and the checks of models before export."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from tfkd import checks
from tfkd.example_inputs import Input, plain_name
from tfkd.export.converter import quiet
from tfkd.export.unsupported import split_at
from tfkd.formats.batching import chunks, joined
from tfkd.formats.forks import check_tensorflow
from tfkd.networks import accept, layer_state, resources
from tfkd.networks.call_graph import CallGraph, graph_of
from tfkd.networks.layer_parts import arrays, parts
from tfkd.networks.paths import walk
from tfkd.types import Structure

_CHUNK = 64  # Examples per call of the Keras model, which limits memory.


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


def check_exportable(
    model: keras.Model, texts: bool = False, float32: str | None = None
) -> keras.Model:
    """Checks that a file can be made of a model, and returns it.

    Args:
        model: what the user passed.
        texts: whether the file can hold texts and lookup tables.
        float32: as in `accept.check_model`.

    Raises:
        TypeError, ValueError: as `check_runnable`; ValueError also if a weight is NaN or
            infinite, or the model computes in half precision, or has texts or lookup tables
            and the file can't hold them.
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
    if not texts:
        _check_numbers(model)
    return model


def _check_numbers(model: keras.Model) -> None:
    """Raises if a model has lookup tables, or reads or returns texts; the message names layers."""
    tables = layer_state.tables(model)
    found = list(dict.fromkeys([*tables, *resources.text_layers(model)]))
    specs = tf.nest.flatten(model.save_spec()[0][0])
    texts = [spec.name for spec in specs if spec.dtype.name == "string"]
    if not found and not texts:
        return
    paths = {id(layer): path for path, layer in walk(model)}
    where = [paths.get(id(one), one.name) for one in found]
    kinds = [type(one).__name__ for one in found]
    named = [f"{path!r} ({kind})" for path, kind in zip(where, kinds, strict=True)][:3]
    received = ", ".join(named) or f"texts in the input {texts[0]!r}"
    raise ValueError(
        f"`model`: expected layers that compute numbers from numbers, received {received}. Only "
        "SavedModels hold texts and lookup tables: tfkd.export.to_saved_model."
        f"{split_at(model, where)}"
    )


def is_quantized(model: object) -> bool:
    """True for a `QuantizedModel`; told by class name, so that float models don't need tfmot."""
    return any(c.__name__ == "QuantizedModel" for c in type(model).__mro__)


def exportable(
    model: keras.Model, target: str, texts: bool = False, float32: str | None = None
) -> tuple[NamedFunction, NamedFunction]:
    """Checks a model; returns the function to compare a file with, and that to convert.

    They are the same, except that a quantized model is converted in its deployed form.

    Args:
        model: what the user passed.
        target: target of a quantized model, "tflite" or "tensorrt".
        texts: whether the file can hold texts and lookup tables.
        float32: name of what accepts float32 only, as in `accept.check_model`.

    Raises:
        TypeError, ValueError: as `check_exportable`; if a
            quantized model is not calibrated or was made for another target.
        RuntimeError: if TensorFlow was used before this process was forked: tracing
            would hang.
    """
    check_tensorflow()
    model = check_exportable(model, texts, float32)
    plain = model
    if is_quantized(model):
        from tfkd.quantization.deploying import deployed

        plain = deployed(model, target)  # raises unless calibrated, in better words than tracing
    graph = NamedFunction(model)
    return graph, graph if plain is model else NamedFunction(plain)


def _unique_names(names: Sequence[object], fold: Callable[[str], str] = str) -> list[str]:
    """Plain names that differ after `fold`."""
    found: list[str] = []
    for name in map(plain_name, names):
        taken = {fold(one) for one in found}
        tries = itertools.chain([name], (f"{name}_{number}" for number in itertools.count(1)))
        found.append(next(one for one in tries if fold(one) not in taken))
    return found


@contextlib.contextmanager
def _without_chance(layers: Sequence[Any]) -> Iterator[None]:
    """Leaves the random branch out of each `RandomCrop` that is called for inference.

    Keras decides between the branches when the graph runs, so that it would hold both.
    """
    crops = [one for one in layers if type(one) is keras.layers.RandomCrop]
    for layer in crops:
        vars(layer)["call"] = functools.partial(_crop, layer)
    try:
        yield
    finally:
        for layer in crops:
            del vars(layer)["call"]


def _crop(layer: Any, inputs: Any, training: Any = True) -> Any:
    if training is not False:
        return type(layer).call(layer, inputs, training)
    inputs = tf.cast(inputs, layer.compute_dtype)
    resized = keras.preprocessing.image.smart_resize(inputs, [layer.height, layer.width])
    # Its slice hides the number of channels from TFLite's converter.
    shaped = tf.reshape(resized, [-1, layer.height, layer.width, inputs.shape[-1]])
    return tf.cast(shaped, layer.compute_dtype)


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
        # TensorFlow's signatures ignore the case of inputs.
        names = _unique_names([n or "input" for n in names], str.lower)
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

    def module(self, batch_size: int | None) -> tf.Module:
        """A module whose function `forward` is that of `function`, to be saved."""
        module = tf.Module()
        module.forward = self.function(batch_size)
        # Not the Keras model: tracking it would trace every layer again and save its metadata.
        module.kept = [*arrays(self.model), *resources.tracked(self.model)]
        return module

    def call(self, inputs: Sequence[tf.Tensor]) -> Structure:
        """The model's outputs, in its own structure, for its inputs in order."""
        with _without_chance(self.layers):
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
        """Runs the Keras model on (N, ...) arrays by input name; returns outputs by name.

        Numbers are returned in float32.

        Raises:
            ValueError: if an output holds NaN or infinity.
        """
        parts = chunks({i.name: feeds[i.name] for i in self.inputs}, _CHUNK)
        with quiet():  # Compiling for XLA and retracing are logged.
            found = joined(self._open(*part.values()) for part in parts)
        whole = {name: found[name] for name in self.outputs}
        for name, value in whole.items():
            if value.dtype.kind == "f" and not np.isfinite(value).all():
                raise checks.value_error(
                    "model", "finite outputs", f"NaN or infinity in output {name!r}"
                )
        return whole
