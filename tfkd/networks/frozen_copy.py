"""Frozen copies of models, in half precision or with folded batch norms: teachers, mostly."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from tfkd import checks
from tfkd.networks import configs, edit_config, layer_state
from tfkd.networks.accept import check_model
from tfkd.networks.batch_norm import folded, is_per_channel
from tfkd.networks.call_graph import CallGraph, Key, Ref
from tfkd.networks.layer_parts import arrays, calls_anywhere, flat_layers

DTYPES = ("float32", "float16", "bfloat16")
_FOLDABLE = ("Conv1D", "Conv2D", "Conv3D", "Conv2DTranspose", "DepthwiseConv2D", "Dense")
_NESTED = ("Functional", "Sequential", "Model")
# Preprocessing layers, which read raw inputs: half precision would map them to other words or
# bins.
_KEEP_TYPE = frozenset(
    "InputLayer Normalization Discretization StringLookup IntegerLookup TextVectorization Hashing "
    "HashedCrossing CategoryEncoding".split()
)


def frozen_copy(
    model: keras.Model,
    dtype: str | None = None,
    fold_batch_norm: bool = False,
    name: str | None = None,
) -> keras.Model:
    """Copies a model with its weights and freezes the copy.

    The copy shares no variable with the model, so the model can continue training
    with the copy as its teacher.

    Args:
        model: a built `tf_keras` model. Functional and Sequential models (also
            nested) for `dtype` and `fold_batch_norm`; any model otherwise.
        dtype: "bfloat16" or "float16": the dtype of the weights and the arithmetic
            of every layer except the output layers, so that outputs stay float32.
            Preprocessing layers (`Normalization`, lookups) keep theirs, too. It is
            faster on processors that support it. The largest float16 number is
            65504; bfloat16 has the range of float32. "float32" turns a float64
            model into one that LiteRT accepts. None: as in the model.
        fold_batch_norm: fold each batch normalization that follows a convolution
            or dense layer into its weights, which computes the same function in
            inference with fewer operations.
        name: name of the copy; None: the model's own.

    Returns:
        A `tf_keras` model with `trainable = False`.

    Raises:
        TypeError: if `model` is not a tf_keras model.
        ValueError: if the model is not built, or holds weights that are NaN,
            infinite or too large for `dtype`; or if `dtype` or `fold_batch_norm`
            needs it to be rebuilt from its config, and that fails.

    Example:
        >>> import numpy as np
        >>> import tfkd
        >>> model = tfkd.models.resnet(8)
        >>> teacher = tfkd.frozen_copy(model, fold_batch_norm=True)
        >>> x = np.ones((1, 32, 32, 3), "float32")
        >>> bool(np.allclose(model(x), teacher(x), atol=1e-5)), teacher.trainable
        (True, False)
    """
    if dtype is not None:
        checks.one_of("dtype", dtype, DTYPES)
    check_model("model", model, finite=True)
    if dtype is None and not fold_batch_norm:
        frozen = _plain_copy(model)
    else:
        frozen = _rebuild(model, dtype, fold_batch_norm)
    layer_state.copy_declaration(model, frozen)
    if name is not None:
        frozen._name = name
    _warn_of_batch_statistics(model)
    frozen.trainable = False
    return frozen


def _warn_of_batch_statistics(model: keras.Model) -> None:
    """Warns of batch norms called with `training=True`, which a frozen layer ignores."""
    kind = keras.layers.BatchNormalization
    layers = [part for part in flat_layers(model) if isinstance(part, kind)]
    nodes = [(layer.name, node) for layer in layers for node in calls_anywhere(layer)]
    names = {name for name, node in nodes if node.call_kwargs.get("training") is True}
    if names:
        checks.warn(
            f"frozen_copy: {', '.join(map(repr, sorted(names)))} is called with training=True, so "
            "the model computes with the statistics of each batch. A frozen batch normalization "
            "uses its moving statistics: the copy answers differently. Build the model without "
            "training=True, or pass a function as the teacher: lambda x: model(x)."
        )


def _plain_copy(model: keras.Model) -> keras.Model:
    if _is_graph(model):
        frozen = configs.from_config(model, configs.learned_config(model))
        layer_state.copy(model, frozen)
        return frozen
    try:
        with keras.utils.custom_object_scope(configs.held_objects(model)):
            frozen = copy.deepcopy(model)
        if len(frozen.weights) == len(model.weights):
            # deepcopy loses the bin boundaries of Discretization layers.
            layer_state.copy(model, frozen)
            return frozen
        frozen = model.__class__.from_config(model.get_config())
        frozen.build_from_config(model.get_build_config())
        layer_state.copy(model, frozen)
        return frozen
    except Exception as error:
        raise ValueError(
            f"`model`: expected a model that can be copied, received the subclassed "
            f"{type(model).__name__}, which can't ({error!r}). Give it get_config and from_config, "
            "or make the copy yourself with set_weights(model.get_weights())."
        ) from error


def _is_graph(model: Any) -> bool:
    """True for a model that is rebuilt from its config, even if it overrides `call`."""
    return isinstance(model, keras.Sequential) or _is_followed(model)


def _is_followed(model: Any) -> bool:
    return bool(getattr(model, "_is_graph_network", False))


def _rebuild(model: keras.Model, dtype: str | None, fold: bool) -> keras.Model:
    if not _is_graph(model):
        raise ValueError(
            "`model`: expected a functional or Sequential model for dtype or fold_batch_norm, "
            f"received the subclassed {type(model).__name__}. Leave both out for a plain copy."
        )
    # Work on an exact copy, so that layers shared with other models are not touched.
    source = _plain_copy(model)
    config = configs.complete_config(source)
    folds: dict[int, Any] = {}
    if fold and _is_followed(source):
        config, folds = _without_batch_norms(config, CallGraph(source))
    if dtype is not None:
        _set_dtype(config, dtype, _output_names(config))
        _start_at_zero(config)
    frozen = configs.from_config(source, config)
    nested = CallGraph(source).nested if _is_followed(source) else {}
    for before, after in edit_config.pairs(source, frozen, nested):
        _transfer(before, after, folds.get(id(before)))
    return frozen


def _without_batch_norms(
    config: configs.Config, graph: CallGraph
) -> tuple[configs.Config, dict[int, Any]]:
    """The config without foldable batch norms, and the batch norm of each convolution's id."""
    moved: dict[str, dict[Ref, Ref]] = {}
    gone: dict[str, set[Key]] = {}
    folds: dict[int, Any] = {}
    configs = dict(edit_config.layer_configs(config))
    for prefix, level in graph.levels().items():
        for norm in level.calls.values():
            maker = level.maker(norm.inputs[0]) if len(norm.inputs) == 1 else None
            if maker is None or level.only_reader(norm.inputs[0]) is not norm:
                continue
            once = all(len(level.calls_of(call.name)) == 1 for call in (maker, norm))
            if once and _can_fold(norm.layer, maker.layer):
                moved.setdefault(prefix, {})[norm.outputs[0]] = maker.outputs[0]
                gone.setdefault(prefix, set()).add(norm.key)
                folds[id(maker.layer)] = norm.layer
                configs[prefix + maker.name]["use_bias"] = True
    return edit_config.without_calls(config, graph, moved, gone), folds


def _can_fold(norm: Any, producer: Any) -> bool:
    if type(norm).__name__ != "BatchNormalization" or type(producer).__name__ not in _FOLDABLE:
        return False
    if producer.activation is not keras.activations.linear:
        return False
    channels_last = getattr(producer, "data_format", "channels_last") == "channels_last"
    return channels_last and is_per_channel(norm, producer.output_shape)


def _output_names(config: dict[str, Any]) -> set[str]:
    outputs = config.get("output_layers")
    if outputs is None:
        return {config["layers"][-1]["config"]["name"]}
    return {item[0] for item in _flat_refs(outputs)}


def _flat_refs(refs: Any) -> list[list[Any]]:
    """The ["name", node, tensor] triples of a functional config, from any nesting."""
    if isinstance(refs, dict):
        return [ref for value in refs.values() for ref in _flat_refs(value)]
    if isinstance(refs, (list, tuple)):
        if len(refs) >= 3 and isinstance(refs[0], str) and isinstance(refs[1], int):
            return [refs]  # type: ignore[list-item]
        return [ref for value in refs for ref in _flat_refs(value)]
    return []


def _set_dtype(config: dict[str, Any], dtype: str, keep: set[str]) -> None:
    """Sets the dtype of every layer except inputs, preprocessing and the layers in `keep`.

    Inputs of double precision become float32 with the rest.
    """
    for layer in config["layers"]:
        inner = layer["config"]
        held = inner.get("layer")  # of a wrapper
        if {layer["class_name"], held and held["class_name"]} & _KEEP_TYPE:
            if dtype == "float32" and layer["class_name"] == "InputLayer":
                inner["dtype"] = inner["dtype"].replace("float64", dtype)
            continue
        if layer["class_name"] in _NESTED and "layers" in inner:
            _set_dtype(inner, dtype, _output_names(inner) if inner["name"] in keep else set())
        elif inner.get("name") in keep:
            inner["dtype"] = "float32"
        elif "dtype" in inner:
            inner["dtype"] = dtype


def _start_at_zero(config: Any) -> None:
    """Replaces orthogonal initializers by zeros: TensorFlow has no bfloat16 QR decomposition.

    All weights are copied afterwards.
    """
    if isinstance(config, dict):
        for key, value in config.items():
            if isinstance(value, dict) and str(value.get("class_name")).startswith("Orthogonal"):
                config[key] = keras.initializers.serialize(keras.initializers.Zeros())
            else:
                _start_at_zero(value)
    elif isinstance(config, (list, tuple)):
        for value in config:
            _start_at_zero(value)


def _transfer(before: Any, layer: Any, norm: Any) -> None:
    """Copies the weights of a layer, with the batch norm that follows it folded in."""
    if norm is None:
        # First, since adapted bins have the same weights as the original only after it.
        layer_state.copy(before, layer)
        values: Sequence[Any] = arrays(before)
    else:
        kernel, *bias = before.get_weights()
        values = folded(before, kernel, bias[0] if bias else None, norm)
    for variable, value in zip(arrays(layer), values, strict=True):
        _check_fits(variable, value)
        if norm is not None:
            variable.assign(tf.cast(value, variable.dtype))


def _check_fits(variable: Any, value: Any) -> None:
    """Raises if a weight overflows in float16; warns if all of it underflows to 0."""
    if variable.dtype != tf.float16:
        return
    largest = float(np.abs(np.asarray(value, np.float32)).max(initial=0))
    cast = np.abs(tf.cast(value, tf.float16).numpy())
    if np.isfinite(largest) and not np.isfinite(cast).all():
        raise checks.value_error(
            "dtype",
            f"'bfloat16' for a model whose weight {variable.name!r} holds numbers up to "
            f"{largest:.3g}",
            "float16",
            "The largest float16 number is 65504; bfloat16 and float32 hold it.",
        )
    if largest > 0 and not cast.any():
        checks.warn(
            f"`dtype`: the weight {variable.name!r}, up to {largest:.3g}, is 0 in float16, whose "
            "smallest number is 6e-08. Use 'bfloat16', unless the layer does nothing."
        )
