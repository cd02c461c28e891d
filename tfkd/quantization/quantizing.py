"""From a float model to one that is trained as it will be deployed.

Reference: Jacob et al. 2018, Quantization and Training of Neural Networks for
Efficient Integer-Arithmetic-Only Inference, https://arxiv.org/abs/1712.05877
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import tensorflow as tf
import tf_keras as keras

from tfkd import checks
from tfkd.networks import layer_state, layer_weights
from tfkd.networks import rebuild as rewriting
from tfkd.networks.layer_parts import parts
from tfkd.quantization import layer_roles
from tfkd.quantization.calls import Call, calls_of
from tfkd.quantization.fake_quant import RangeQuantizer, WeightQuantizer
from tfkd.quantization.flattening.flatten import flatten
from tfkd.quantization.norm_statistics import is_batch_norm
from tfkd.quantization.placement import place
from tfkd.quantization.quantized_model import QuantizedModel
from tfkd.quantization.report import INT8, Decision
from tfkd.quantization.wrappers import WEIGHTS, LayerConfig, QuantizedLayer, QuantizedTensor

TARGETS = ("tflite", "tensorrt", "both")
FALLBACKS = ("output_only", "noop", "error")


def quantize(
    model: keras.Model,
    target: str = "tflite",
    fallback: str = "output_only",
    skip: Iterable[str] = (),
    preserve_sparsity: bool = False,
    freeze_batch_norm: bool = True,
) -> QuantizedModel:
    """Makes a model that computes as 8-bit integers will, to be calibrated and trained.

    Weights are quantized to −127 … 127 with a scale for each output channel (one
    for a dense layer), activations with one range a tensor. Layers that the
    runtime computes as one (convolution, batch normalization, ReLU) are
    quantized as one. The four projections of `MultiHeadAttention` are dense layers of
    their own. What is decided for each layer is in `q.report`.

    Args:
        model: a built functional or Sequential tf_keras model in float32. It is not
            changed and shares nothing with the result. Models nested in it are
            entered; layers keep their names.
        target: "tflite"; "tensorrt": symmetric ranges, only where TensorRT reads 8
            bits; "both": the places of TFLite with symmetric ranges, so that one
            trained model goes to both.
        fallback: for layers without an 8-bit form (LayerNormalization, recurrent and
            custom layers, what stands between the projections of attention ...):
            "output_only": they compute in float and their output is quantized; "noop":
            they stay float, and so do layers that read them in TFLite; "error": raise.
        skip: names of layers that stay float, paths for those in nested models
            ("backbone/conv1"); a nested model's name means all layers in it.
        preserve_sparsity: weights that are 0 now stay 0 in training.
        freeze_batch_norm: batch normalizations compute in training as in inference, and
            neither their statistics nor gamma and beta change, whatever `trainable` is set
            to. Statistics that move on a few hundred images ruin a network that was trained
            on many. False, to train them: for long training on the data that the model
            was trained on.

    Returns:
        A `QuantizedModel`; calibrate it next.

    Raises:
        TypeError: if `model` is no tf_keras model, or a name no string.
        ValueError: if it is unbuilt, subclassed, quantized already or not in float32;
            for an unknown name; for layers without an 8-bit form with "error"; if a batch
            normalization is called with `training=True`, which no file can do.

    Example:
        >>> import numpy as np, tfkd
        >>> images = np.random.default_rng(0).normal(size=(8, 32, 32, 3)).astype("float32")
        >>> q = tfkd.quantization.quantize(tfkd.models.resnet(8), target="both", skip=["logits"])
        >>> tfkd.quantization.calibrate(q, images)
        >>> q(images).shape
        TensorShape([8, 10])
        >>> print(q.report.of("logits").why)
        left out by `skip`
    """
    checks.one_of("target", target, TARGETS)
    checks.one_of("fallback", fallback, FALLBACKS)
    checks.instance("freeze_batch_norm", freeze_batch_norm, bool, "True or False")
    _refuse_quantized(model)
    layer_weights.check_float32("model", model, "Fake quantization")
    _check_floatx()
    flat = flatten(model)
    layer_weights.check_finite("model", model)
    _warn_of_tables(model)
    floats = dict.fromkeys(_skipped(skip, flat.origins, flat.model), "left out by `skip`")
    calls = calls_of(flat.model)
    _refuse_batch_statistics(calls)
    rows = place(calls, target, fallback, floats)
    recipe = {
        "target": target,
        "fallback": fallback,
        "skip": sorted(floats),
        "preserve_sparsity": bool(preserve_sparsity),
        "freeze_batch_norm": freeze_batch_norm,
        "decisions": [row.to_json() for row in rows],
    }
    return rebuild(flat.model, rows, recipe)


def _check_floatx() -> None:
    """The layers that quantize are made in Keras's own type."""
    kind = keras.backend.floatx()
    if kind == "float64":
        mend = "Call keras.backend.set_floatx('float32') first."
        raise checks.value_error("floatx", "float32, which fake quantization takes", kind, mend)


def rebuild(
    flat: keras.Model, rows: Sequence[Decision], recipe: Mapping[str, Any]
) -> QuantizedModel:
    """Makes the quantized model that was decided on, with new ranges.

    Args:
        flat: the flat float model, as `QuantizedModel.float_config` describes it.
        rows: a decision for each of its calls, in order.
        recipe: the arguments of `quantize`, as in `QuantizedModel.recipe`.

    Returns:
        The `QuantizedModel`, uncalibrated, with the weights of `flat`.

    Raises:
        ValueError: if the decisions are not those of this model.
    """
    calls = calls_of(flat)
    expected = [(call.name, call.index) for call in calls]
    received = [(row.layer, row.call) for row in rows]
    if expected != received:
        odd = next((row for row in received if row not in expected), len(received))
        raise checks.value_error("rows", f"a decision for each of {len(expected)} calls", odd)
    builder = _Builder(calls, rows, recipe["target"] != "tflite", recipe["preserve_sparsity"])
    q = builder.build(flat)
    q._describe(recipe["target"], recipe, flat.to_json(), rows, builder.places)
    return q


def _warn_of_tables(model: keras.Model) -> None:
    found = layer_state.tables(model)
    if found:
        warnings.warn(
            f"quantize: {found[0].name!r} ({type(found[0]).__name__}) looks words or numbers up in "
            "a table, which neither TFLite nor ONNX files can hold: this model can be trained, but "
            "not exported. To export it, split it behind that layer and quantize the rest: "
            "keras.Model(model.get_layer(NEXT).input, model.outputs).",
            stacklevel=3,
        )


def _refuse_quantized(model: Any) -> None:
    """`flatten` looks at the rest."""
    kinds_ = (QuantizedLayer, QuantizedTensor, QuantizedModel)
    everything = (model, *parts(model)) if isinstance(model, keras.Model) else ()
    found = next((part for part in everything if isinstance(part, kinds_)), None)
    if found is not None:
        received = f"{found.name!r}, quantized already"
        mend = "Pass the model that it was made from."
        raise checks.value_error("model", "a float model", received, mend)


def _refuse_batch_statistics(calls: Sequence[Call]) -> None:
    """A file computes with the moving statistics alone."""
    for call in calls:
        if not is_batch_norm(call.layer) or not call.layer.trainable:
            continue
        spec, node = call.layer._call_spec, call.node
        given = (node.call_args, node.call_kwargs)
        passed = spec.arg_was_passed("training", *given, inputs_in_args=True)
        if passed and spec.get_arg_value("training", *given, inputs_in_args=True) is True:
            mend = "Build the model again without `training=True`, or freeze the layer."
            received = f"{call.name!r}, called with training=True: statistics of each batch"
            raise checks.value_error(
                "model", "batch normalizations that use their moving statistics", received, mend
            )


def _skipped(skip: Any, origins: Mapping[str, str], model: keras.Model) -> list[str]:
    """Names of the flat model's layers for the names that the user gave."""
    if isinstance(skip, str) or not isinstance(skip, Iterable):
        raise checks.type_error("skip", "a list of layer names", skip, "Put it in brackets.")
    paths = {layer.name: origins.get(layer.name, layer.name) for layer in model.layers}
    known = dict.fromkeys(
        "/".join(parts[:end])
        for parts in (path.split("/") for path in paths.values())
        for end in range(1, len(parts) + 1)
    )
    found: dict[str, None] = {}
    for name in skip:
        checks.instance("skip", name, str, "layer names")
        hits = [
            flat
            for flat, path in paths.items()
            if name in (flat, path) or path.startswith(f"{name}/") or path.endswith(f"/{name}")
        ]
        if not hits:
            checks.known_name("skip", name, [*known, *paths], "the model")
        found.update(dict.fromkeys(hits))
    return list(found)


class _Builder:
    """Makes the calls of the quantized model."""

    def __init__(
        self, calls: Sequence[Call], rows: Sequence[Decision], symmetric: bool, keep_zeros: bool
    ):
        self.by_node = {id(c.node): (c, row) for c, row in zip(calls, rows, strict=True)}
        self.symmetric, self.keep_zeros = symmetric, keep_zeros
        self.copies, self.losses = rewriting.Copies(), rewriting.Losses()
        self.wrappers: dict[int, tuple[Any, QuantizedLayer]] = {}
        self.names = {call.name for call in calls}
        self.places: dict[str, tuple[str, int]] = {}

    def build(self, model: keras.Model) -> QuantizedModel:
        """Makes every call of a flat model again, wrapped as decided."""
        inputs = rewriting.new_inputs(model)
        starts = [
            self.behind(self.by_node[id(old.node)], new)
            for old, new in zip(model.inputs, inputs, strict=True)
        ]
        outputs = rewriting.follow(model, starts, self.visit)
        q = QuantizedModel(
            tf.nest.pack_sequence_as(model._nested_inputs, inputs),
            tf.nest.pack_sequence_as(model._nested_outputs, outputs),
            name=model.name,
        )
        # Losses and metrics of several outputs are named by these.
        q.output_names = list(model.output_names)
        self.losses.give(q)
        self.copy_state()
        return q

    def visit(self, node: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """One call, and what is put behind it."""
        if self.losses.take(node.layer, args):
            return args[0]
        call, row = self.by_node[id(node)]
        inside = row.output and _can_wrap(call)
        weighted = row.action == INT8 and type(call.layer) in WEIGHTS
        if not inside and not weighted:
            layer = self.copies.caller(call.layer)
        else:
            layer = self._wrapper(call, weighted, inside)
        made = layer(*args, **kwargs)
        return made if inside else self.behind((call, row), made)

    def behind(self, decided: tuple[Call, Decision], tensors: Any) -> Any:
        """Puts a range behind tensors that no wrapper holds one for."""
        call, row = decided
        if not row.output:
            return tensors
        return tf.nest.map_structure(lambda tensor: self._on_grid(call, tensor), tensors)

    def _on_grid(self, call: Call, tensor: Any) -> Any:
        if not tensor.dtype.is_floating:
            return tensor
        plain = name = f"{call.name}_quantize"
        count = 0
        while name in self.names:
            count, name = count + 1, f"{plain}_{count + 1}"
        self.names.add(name)
        self.places[name] = call.name, call.index
        return QuantizedTensor(self._range(call), name=name)(tensor)

    def _range(self, call: Call) -> RangeQuantizer:
        fixed = call.kind.fixed
        return RangeQuantizer(
            self.symmetric, layer_roles.symmetric(fixed) if self.symmetric else fixed
        )

    def _wrapper(self, call: Call, weighted: bool, inside: bool) -> QuantizedLayer:
        if id(call.layer) not in self.wrappers:
            weight, axes = WEIGHTS[type(call.layer)] if weighted else (None, ())
            config = LayerConfig(
                weight,
                WeightQuantizer(axes, self.keep_zeros) if weighted else None,
                self._range(call) if inside else None,
            )
            copy = rewriting.copy_layer(call.layer)
            if inside:
                self.places[call.name] = call.name, call.index
            wrapper = QuantizedLayer(copy, config, name=call.name)
            self.wrappers[id(call.layer)] = (call.layer, wrapper)
        return self.wrappers[id(call.layer)][1]

    def copy_state(self) -> None:
        """Copies all weights; remembers which are 0."""
        self.copies.copy_weights()
        for layer, wrapper in self.wrappers.values():
            rewriting.copy_state(layer, [wrapper.layer])
            for weight, _, variables in wrapper._weight_vars:
                if "mask" in variables:
                    variables["mask"].assign(tf.cast(weight != 0, tf.float32))


def _can_wrap(call: Call) -> bool:
    """True if a wrapper can hold the range of the output: the one tensor of the one call."""
    plain = call.kind.role not in (layer_roles.UNKNOWN, layer_roles.INPUT) and not hasattr(
        call.layer, "function"
    )
    return plain and not call.shared and len(call.tensors) == 1
