"""A frozen copy of a model: the teacher of self-distillation, or a faster teacher."""

from __future__ import annotations

import copy
import itertools
import warnings
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from tfkd import checks
from tfkd.networks import layer_state, layer_weights

DTYPES = ("float32", "float16", "bfloat16")
_FOLDABLE = ("Conv1D", "Conv2D", "Conv3D", "Conv2DTranspose", "DepthwiseConv2D", "Dense")
_NESTED = ("Functional", "Sequential", "Model")
# What reads raw inputs: half precision would move them into other words, bins and means.
_KEEP_TYPE = (
    "InputLayer",
    "Normalization",
    "Discretization",
    "StringLookup",
    "IntegerLookup",
    "TextVectorization",
    "Hashing",
    "HashedCrossing",
    "CategoryEncoding",
)


def frozen_copy(
    model: keras.Model,
    dtype: str | None = None,
    fold_batch_norm: bool = False,
    name: str | None = None,
) -> keras.Model:
    """Copies a model with its weights and freezes the copy.

    The copy shares no variable with the model, so the model can go on training
    with the copy as its teacher.

    Args:
        model: a built `tf_keras` model. Functional and Sequential models (also
            nested) for `dtype` and `fold_batch_norm`; any model otherwise.
        dtype: "bfloat16" or "float16": weights and arithmetic of every layer
            but the last ones, whose outputs are the model's, are in this type.
            Layers that read raw inputs (`Normalization`, lookups) keep theirs.
            Faster on processors that have it; the outputs stay float32. float16
            ends at 65504, bfloat16 where float32 does. "float32" makes a copy that
            LiteRT takes of a model in float64. None: as in the model.
        fold_batch_norm: multiply each batch normalization that follows a
            convolution or dense layer into its weights, which gives the same
            function in inference with fewer operations.
        name: name of the copy; the model's own by default.

    Returns:
        A `tf_keras` model with `trainable = False`.

    Raises:
        TypeError: if `model` is no tf_keras model.
        ValueError: if it has no weights yet, or some that are NaN or infinite, or too
            large for `dtype`; or can't be rebuilt from its config and `dtype` or
            `fold_batch_norm` asks for that.

    Example:
        >>> import numpy as np
        >>> import tfkd
        >>> model = tfkd.models.resnet(8)
        >>> teacher = tfkd.frozen_copy(model, fold_batch_norm=True)
        >>> x = np.ones((1, 32, 32, 3), "float32")
        >>> bool(np.allclose(model(x), teacher(x), atol=1e-5)), teacher.trainable
        (True, False)
    """
    checks.instance("model", model, keras.Model, "a tf_keras model")
    if not model.built:
        raise ValueError(
            "`model`: expected a model whose weights exist, received an unbuilt one. Call it "
            "once on data, or give it an Input."
        )
    if dtype is not None:
        checks.one_of("dtype", dtype, DTYPES)
    layer_weights.check_finite("model", model)
    if dtype is None and not fold_batch_norm:
        frozen = _plain_copy(model)
    else:
        frozen = _rebuild(model, dtype, fold_batch_norm)
    if name is not None:
        frozen._name = name
    _warn_of_batch_statistics(model)
    frozen.trainable = False
    return frozen


def _warn_of_batch_statistics(model: keras.Model) -> None:
    """Warns of batch norms called with `training=True`: frozen ones ignore that."""
    kind = keras.layers.BatchNormalization
    layers = [part for part in model._flatten_layers() if isinstance(part, kind)]
    nodes = [(layer.name, node) for layer in layers for node in layer._inbound_nodes]
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
        config = layer_state.complete(model.get_config(), model)
        frozen = layer_state.from_config(model, config)
        layer_state.copy(model, frozen)
        return frozen
    try:
        frozen = copy.deepcopy(model)
        if len(frozen.weights) == len(model.weights):
            layer_state.copy(model, frozen)  # Keras forgets the bounds of bins.
            return frozen
        frozen = model.__class__.from_config(model.get_config())
        frozen.buildlayer_state.from_config(model.get_build_config())
        layer_state.copy(model, frozen)
        return frozen
    except Exception as error:
        raise ValueError(
            f"`model`: expected a model that can be copied, received the subclassed "
            f"{type(model).__name__}, which can't ({error!r}). Give it get_config and from_config, "
            "or make the copy yourself with set_weights(model.get_weights())."
        ) from error


def _is_graph(model: Any) -> bool:
    return isinstance(model, keras.Sequential) or bool(getattr(model, "_is_graph_network", False))


def _rebuild(model: keras.Model, dtype: str | None, fold: bool) -> keras.Model:
    if not _is_graph(model):
        raise ValueError(
            "`model`: expected a functional or Sequential model for dtype or fold_batch_norm, "
            f"received the subclassed {type(model).__name__}. Leave both out for a plain copy."
        )
    # Through an exact copy, so that a shared layer object is never touched.
    source = _plain_copy(model)
    config = layer_state.complete(source.get_config(), source)
    folded: dict[str, str] = {}
    if fold:
        _drop_batch_norms(config, source, folded, "")
    if dtype is not None:
        _set_dtype(config, dtype, _output_names(config))
        _start_at_zero(config)
    frozen = layer_state.from_config(source, config)
    _transfer(source, frozen, folded, "")
    return frozen


def _children(config: dict[str, Any]) -> list[dict[str, Any]]:
    return config["layers"]


def _output_names(config: dict[str, Any]) -> set[str]:
    outputs = config.get("output_layers")
    if outputs is None:
        return {_children(config)[-1]["config"]["name"]}
    return {item[0] for item in _flat_refs(outputs)}


def _flat_refs(refs: Any) -> list[list[Any]]:
    """["name", node, tensor] triples of a functional config, however nested."""
    if isinstance(refs, dict):
        return [ref for value in refs.values() for ref in _flat_refs(value)]
    if isinstance(refs, (list, tuple)):
        if len(refs) >= 3 and isinstance(refs[0], str) and isinstance(refs[1], int):
            return [refs]  # type: ignore[list-item]
        return [ref for value in refs for ref in _flat_refs(value)]
    return []


def _set_dtype(config: dict[str, Any], dtype: str, keep: set[str]) -> None:
    """Sets the type of every layer, but for the layers in `keep` and inputs."""
    for layer in _children(config):
        inner = layer["config"]
        held = inner.get("layer")  # of a wrapper
        if {layer["class_name"], held and held["class_name"]} & set(_KEEP_TYPE):
            continue
        if layer["class_name"] in _NESTED and "layers" in inner:
            _set_dtype(inner, dtype, _output_names(inner) if inner["name"] in keep else set())
        elif inner.get("name") in keep:
            inner["dtype"] = "float32"
        elif "dtype" in inner:
            inner["dtype"] = dtype


def _start_at_zero(config: Any) -> None:
    """Lets weights start at 0 that TensorFlow can't make orthogonal in bfloat16: all are copied."""
    if isinstance(config, dict):
        for key, value in config.items():
            if isinstance(value, dict) and str(value.get("class_name")).startswith("Orthogonal"):
                config[key] = keras.initializers.serialize(keras.initializers.Zeros())
            else:
                _start_at_zero(value)
    elif isinstance(config, (list, tuple)):
        for value in config:
            _start_at_zero(value)


def _drop_batch_norms(
    config: dict[str, Any], model: keras.Model, folded: dict[str, str], prefix: str
) -> None:
    """Removes each foldable batch norm from the config; notes it under its convolution."""
    layers = {layer.name: layer for layer in model.layers}
    for child in _children(config):
        if child["class_name"] in _NESTED and "layers" in child["config"]:
            name = child["config"]["name"]
            _drop_batch_norms(child["config"], layers[name], folded, f"{prefix}{name}/")
    sequential = "output_layers" not in config
    producers = _sequential_producers(config) if sequential else _producers(config)
    for norm, producer in producers.items():
        if not _can_fold(layers.get(norm), layers.get(producer)):
            continue
        folded[prefix + producer] = norm
        _child(config, producer)["config"]["use_bias"] = True
        config["layers"] = [c for c in _children(config) if c["config"]["name"] != norm]
        if not sequential:
            for ref in _all_refs(config):
                if ref[0] == norm:
                    ref[0], ref[1] = producer, 0


def _child(config: dict[str, Any], name: str) -> dict[str, Any]:
    return next(c for c in _children(config) if c["config"]["name"] == name)


def _all_refs(config: dict[str, Any]) -> list[list[Any]]:
    refs = [r for child in _children(config) for r in _flat_refs(child["inbound_nodes"])]
    return refs + _flat_refs(config["output_layers"])


def _producers(config: dict[str, Any]) -> dict[str, str]:
    """Batch norm → the layer whose only consumer it is."""
    uses: dict[str, int] = {}
    for ref in _all_refs(config):
        uses[ref[0]] = uses.get(ref[0], 0) + 1
    found = {}
    for child in _children(config):
        refs = _flat_refs(child.get("inbound_nodes", []))
        if child["class_name"] == "BatchNormalization" and len(refs) == 1:
            producer = refs[0][0]
            if uses[producer] == 1:
                found[child["config"]["name"]] = producer
    return found


def _sequential_producers(config: dict[str, Any]) -> dict[str, str]:
    children = _children(config)
    return {
        after["config"]["name"]: before["config"]["name"]
        for before, after in itertools.pairwise(children)
        if after["class_name"] == "BatchNormalization"
    }


def _can_fold(norm: Any, producer: Any) -> bool:
    if norm is None or type(producer).__name__ not in _FOLDABLE:
        return False
    if getattr(producer, "activation", None) is not keras.activations.linear:
        return False
    axes = [norm.axis] if isinstance(norm.axis, int) else list(norm.axis)
    rank = len(norm.input_spec.axes) if norm.input_spec.ndim is None else norm.input_spec.ndim
    channels_last = getattr(producer, "data_format", "channels_last") == "channels_last"
    once = len(producer.inbound_nodes) == 1 and len(norm.inbound_nodes) == 1
    on_channels = [axis % rank for axis in axes] == [rank - 1]
    return once and channels_last and on_channels


def _transfer(source: Any, target: Any, folded: dict[str, str], prefix: str) -> None:
    """Copies weights layer by layer, with each batch norm multiplied in."""
    layers = {layer.name: layer for layer in source.layers}
    for layer in target.layers:
        if layer.name not in layers:
            raise ValueError(
                "`model`: expected layers whose get_config holds their name, received a "
                f"{type(layer).__name__} whose copy is named {layer.name!r}. Let its get_config "
                "add to super().get_config(), and its constructor pass **kwargs on."
            )
        before = layers[layer.name]
        if hasattr(layer, "layers"):
            _transfer(before, layer, folded, f"{prefix}{layer.name}/")
            continue
        norm = folded.get(prefix + layer.name)
        if norm is None:
            # Bins that were learned have the weights of the others only once they are copied.
            layer_state.copy(before, layer)
            for variable, value in zip(*map(layer_weights.arrays, (layer, before)), strict=True):
                _check_fits(variable, value)
            continue
        for variable, value in zip(layer.weights, _fold(before, layers[norm]), strict=True):
            _check_fits(variable, value)
            variable.assign(tf.cast(value, variable.dtype))


def _check_fits(variable: Any, value: Any) -> None:
    """Raises where float16 makes infinity of a weight, and warns where it makes 0 of all."""
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
            "float16 ends at 65504; bfloat16 and float32 hold it.",
        )
    if largest > 0 and not cast.any():
        warnings.warn(
            f"`dtype`: the weight {variable.name!r}, up to {largest:.3g}, is 0 in float16, whose "
            "smallest number is 6e-08. Use 'bfloat16', unless the layer does nothing.",
            stacklevel=5,
        )


def _fold(layer: Any, norm: Any) -> list[np.ndarray]:
    """Kernel and bias of layer followed by batch norm, in float64.

    y = γ (W x + b − μ) / √(σ² + ε) + β.
    """
    is_depthwise = hasattr(layer, "depthwise_kernel")
    kernel = layer.depthwise_kernel if is_depthwise else layer.kernel
    kernel = kernel.numpy().astype("float64")
    mean = norm.moving_mean.numpy().astype("float64")
    scale = 1.0 / np.sqrt(norm.moving_variance.numpy().astype("float64") + norm.epsilon)
    if norm.scale:
        scale = scale * norm.gamma.numpy().astype("float64")
    bias = layer.bias.numpy().astype("float64") if layer.use_bias else 0.0
    bias = (bias - mean) * scale
    if norm.center:
        bias = bias + norm.beta.numpy().astype("float64")
    if is_depthwise:
        kernel = kernel * scale.reshape(kernel.shape[-2:])
    elif type(layer).__name__ == "Conv2DTranspose":
        kernel = kernel * scale[:, None]
    else:
        kernel = kernel * scale
    return [kernel.astype("float32"), bias.astype("float32")]
