"""A Keras model as a plain function from named inputs to named outputs."""

from __future__ import annotations

import keyword
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from tfkd import checks
from tfkd.example_inputs import Input
from tfkd.formats.forks import check_tensorflow
from tfkd.networks.layer_parts import parts

_CHUNK = 64
_SPLIT = (
    "Split the model behind the layer that reads words: look them up in Python, and pass "
    "keras.Model(model.get_layer(NEXT).input, model.outputs), where NEXT is the layer after it."
)


def check_exportable(model: Any) -> None:
    """Raises if `model` is no built Keras 2 model in float32, or remembers earlier calls."""
    import tf_keras as keras

    from tfkd.networks import accept

    accept.check_model("model", model, accept.BUILT)
    if model.save_spec() is None:
        raise accept.unbuilt("model", model)
    remembering = [
        layer.name
        for layer in parts(model)
        if isinstance(layer, keras.layers.RNN) and layer.stateful
    ]
    if remembering:
        fix = (
            "A file answers each call by itself. Build them with stateful=False (the weights "
            "fit); where calls are to go on from one another, make the states inputs and outputs "
            "of the model: `initial_state` and `return_state=True`."
        )
        expected, received = "recurrent layers with stateful=False", ", ".join(remembering)
        raise checks.value_error("model", expected, received, fix)
    low = sorted(
        {
            layer.compute_dtype
            for layer in parts(model)
            if isinstance(layer, keras.layers.Layer)
            and layer.compute_dtype in ("float16", "bfloat16")
        }
    )
    if low:
        fix = (
            "Build it again under the policy 'float32' and copy the weights: "
            "`plain.set_weights(model.get_weights())`."
        )
        raise checks.value_error("model", "a model that computes in float32", low[0], fix)
    texts = [spec.name for spec in _flat(model.save_spec()[0][0]) if spec.dtype.name == "string"]
    if texts:
        raise checks.value_error("model", "inputs of numbers", f"text in {texts[0]!r}", _SPLIT)


def is_quantized(model: Any) -> bool:
    """True for a `QuantizedModel`; told by name, so that float models need no tfmot."""
    return any(c.__name__ == "QuantizedModel" for c in type(model).__mro__)


def exportable(model: Any, target: str) -> tuple[NamedFunction, NamedFunction]:
    """Accepts a model; returns it, to compare a file with, and what is converted.

    They are the same, but for a quantized model, for which its plain form is converted.

    Args:
        model: what the user passed.
        target: of a quantized model, "tflite" or "tensorrt".

    Raises:
        TypeError, ValueError: if there can be no file of it: for weights that are no numbers,
            tables of words, a quantized model that is not calibrated or made for another
            target; and in a child that was forked after TensorFlow was used, where tracing
            would never end.
    """
    from tfkd.networks import layer_state, layer_weights

    check_tensorflow()
    check_exportable(model)
    layer_weights.check_finite("model", model)
    for layer in layer_state.tables(model):
        received = f"{layer.name!r}, a {type(layer).__name__}, which looks them up in a table"
        raise checks.value_error("model", "layers that compute with numbers", received, _SPLIT)
    if not is_quantized(model):
        graph = NamedFunction(model)
        return graph, graph
    from tfkd.quantization.deploying import deployed

    return NamedFunction(model), NamedFunction(deployed(model, target))


def _flat(structure: Any) -> list[Any]:
    import tensorflow as tf

    return tf.nest.flatten(structure)


def _unique_names(names: Sequence[str]) -> list[str]:
    """Names fit for a signature, whose inputs are Python arguments; no two alike."""
    found: list[str] = []
    for name in names:
        name = re.sub(r"\W", "_", name)
        if not name.isidentifier() or keyword.iskeyword(name):
            name = f"x_{name}"
        count, plain = 1, name
        while name in found:
            count, name = count + 1, f"{plain}_{count}"
        found.append(name)
    return found


class NamedFunction:
    """`model` with inputs and outputs by name, in inference.

    Attributes:
        inputs: tuple of `Input`.
        outputs: output names.
    """

    def __init__(self, model: Any):
        """Takes a model that `check_exportable` holds for."""
        import tensorflow as tf

        self.model = model
        args, _ = model.save_spec()
        self._structure = args[0]
        specs = tf.nest.flatten(self._structure)
        names = getattr(model, "input_names", None) or [s.name for s in specs]
        names = _unique_names([n or "input" for n in names])
        self.inputs = tuple(map(Input.of, names, specs))
        self.outputs: list[str] = []
        self._open = self.function(None)
        self._open.get_concrete_function()

    def function(self, batch_size: int | None) -> Any:
        """A `tf.function` of the inputs in order that returns a dict of outputs."""
        import tensorflow as tf

        signature = [
            tf.TensorSpec([batch_size, *(None if s < 0 else s for s in i.shape)], i.dtype, i.name)
            for i in self.inputs
        ]

        @tf.function(input_signature=signature)
        def forward(*tensors):
            return self._named(self.call(tensors))

        return forward

    def call(self, inputs: Sequence[Any]) -> Any:
        """The model's outputs for its inputs, in order."""
        import tensorflow as tf

        return self.model(tf.nest.pack_sequence_as(self._structure, inputs), training=False)

    def _named(self, outputs: Any) -> dict[str, Any]:
        import tensorflow as tf

        flat = tf.nest.flatten(outputs)
        names = getattr(self.model, "output_names", None)
        if isinstance(outputs, dict) and len(outputs) == len(flat):
            names = sorted(outputs)
        if not names or len(names) != len(flat):
            names = [f"output_{i}" for i in range(len(flat))]
        self.outputs = _unique_names(names)
        return dict(zip(self.outputs, flat, strict=True))

    def predict(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Runs Keras on (N, ...) arrays by input name; float32 out, by output name.

        Raises:
            ValueError: if an output holds NaN or infinity.
        """
        count = len(next(iter(feeds.values())))
        parts: dict[str, list[np.ndarray]] = {name: [] for name in self.outputs}
        for start in range(0, count, _CHUNK):
            result = self._open(*(feeds[i.name][start : start + _CHUNK] for i in self.inputs))
            for name, value in result.items():
                parts[name].append(np.asarray(value, np.float32))
        whole = {name: np.concatenate(value) for name, value in parts.items()}
        for name, value in whole.items():
            if not np.isfinite(value).all():
                raise checks.value_error(
                    "model", "finite outputs", f"NaN or infinity in output {name!r}"
                )
        return whole
