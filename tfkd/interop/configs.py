"""Translates Keras 3 layer configs to configs of the tf_keras class of the same name."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import tf_keras as keras

from tfkd.interop import activations
from tfkd.interop.attention import MaskedAttention, zeroes_masked
from tfkd.keras_internals import CustomScaleLayer, LayerScale, StochasticDepth

# Arguments that every layer takes.
_COMMON = frozenset({"name", "trainable", "dtype", "activity_regularizer"})
# Arguments that tf_keras takes in **kwargs.
_UNNAMED = frozenset({"zero_output_for_mask"})
_RENAMED = {"LeakyReLU": {"negative_slope": "alpha"}}
# Arguments that only Keras 3 has, with the value at which they have no effect.
_NEUTRAL: dict[str, Any] = {
    **dict.fromkeys(
        "antialias optional pad_to_aspect_ratio renorm rms_scaling use_gate".split(), False
    ),
    **dict.fromkeys(
        "bounding_box_format factor gptq_unpacked_column_size input_axes lora_alpha lora_rank "
        "output_axes quantization_config sliding_window weights".split()
    ),
    "data_format": "channels_last",
}
# These do not affect the outputs in inference, or do so only together with one above.
_IGNORED = frozenset(
    "fill_mode fill_value flash_attention renorm_clipping renorm_momentum seed use_cudnn".split()
)
# Classes of the same name that contain code or tables that can't be converted.
_LOOKUPS = ("StringLookup", "IntegerLookup", "TextVectorization")
_REFUSED = {
    **dict.fromkeys(_LOOKUPS, "its vocabulary can't be converted"),
    "Lambda": "a Python function written for Keras 3",
    "TFSMLayer": "a SavedModel inside",
}
_POLICIES = frozenset("float16 bfloat16 float32 float64 mixed_float16 mixed_bfloat16".split())
# Custom layers of keras.applications, in both versions.
_APPLICATIONS = {c.__name__: c for c in (LayerScale, StochasticDepth, CustomScaleLayer)}
_HOLDERS = {
    f"keras.{name}": getattr(keras, name)
    for name in ("initializers", "regularizers", "constraints", "layers")
}


class Missing(Exception):
    """Raised for parts of a Keras 3 model without a counterpart in tf_keras.

    Args:
        what: one description per part.
    """

    def __init__(self, *what: str) -> None:
        super().__init__("; ".join(what))
        self.what = what


def layer_class(layer: Any) -> type:
    """The tf_keras class for a Keras 3 layer.

    Raises:
        Missing: if there is none, or the layer's class is user-defined.
    """
    kind = type(layer)
    name, module = kind.__name__, kind.__module__
    if module.startswith("keras.src.applications.") and name in _APPLICATIONS:
        return _APPLICATIONS[name]
    if not module.startswith("keras.src.layers."):
        raise Missing(f"class {module}.{name} is not part of Keras: add it to `custom_layers`")
    if name in _REFUSED:
        raise Missing(f"keras.layers.{name}: {_REFUSED[name]}: add it to `custom_layers`")
    found = getattr(keras.layers, name, None)
    if found is None:
        raise Missing(f"keras.layers.{name} does not exist in tf_keras")
    return found


def new_layer(layer: Any) -> keras.layers.Layer:
    """A tf_keras layer with the arguments of a Keras 3 layer, not yet built.

    Raises:
        Missing: naming every argument without a counterpart.
    """
    kind = layer_class(layer)
    config = _arguments(kind, layer.get_config())
    if kind is keras.layers.MultiHeadAttention:
        # Its from_config needs input shapes, which the config of Keras 3 lacks.
        return (MaskedAttention if zeroes_masked(layer) else kind)(**config)
    if kind is keras.layers.Normalization and config["dtype"] == "float64":
        for key in ("mean", "variance"):  # Keras 3 always rounds these to float32.
            if config[key] is not None:
                config[key] = np.asarray(config[key], "float32").tolist()
    if kind is keras.layers.Bidirectional:
        # tf_keras adds the prefixes "forward_" and "backward_" again.
        for key, prefix in (("layer", "forward_"), ("backward_layer", "backward_")):
            inner = config[key]["config"]
            inner["name"] = inner["name"].removeprefix(prefix)
    return kind.from_config(config)  # type: ignore[attr-defined]


def accepted(kind: type) -> set[str]:
    """Names of the constructor arguments of a class, including those of its bases."""
    names: set[str] = set()
    for parent in kind.__mro__:
        if parent is keras.layers.Layer or parent is object:
            break
        if "__init__" not in vars(parent):
            continue
        parameters = inspect.signature(vars(parent)["__init__"]).parameters.values()
        names |= {p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
        if not any(p.kind == p.VAR_KEYWORD for p in parameters):
            return names - {"self"}
    if issubclass(kind, keras.layers.Layer):
        names |= _COMMON
    if issubclass(kind, keras.layers.RNN):
        names |= _UNNAMED
    return names - {"self"}


def _arguments(kind: type, config: dict[str, Any]) -> dict[str, Any]:
    known, renamed = accepted(kind), _RENAMED.get(kind.__name__, {})
    found: dict[str, Any] = {}
    missing: list[str] = []
    for key, value in config.items():
        try:
            if renamed.get(key, key) in known:
                found[renamed.get(key, key)] = _value(key, value)
            elif key in _IGNORED or (key in _NEUTRAL and _NEUTRAL[key] == value):
                continue
            else:
                missing.append(f"argument {key}={value!r} of {kind.__name__}")
        except Missing as error:
            missing += [f"argument {key} of {kind.__name__}: {what}" for what in error.what]
    if missing:
        raise Missing(*missing)
    return found


def _value(key: str, value: Any) -> Any:
    """Converts one argument: a name, a serialized object, or a list of these."""
    if key == "dtype":
        return _policy(value)
    if key == "seed":
        return value if isinstance(value, int) else None
    if key.endswith("activation") and isinstance(value, str):
        return _activation(value)
    if isinstance(value, dict):
        return _object(value)
    if isinstance(value, list):
        return [_value("", item) for item in value]
    return value


def _activation(name: str) -> Any:
    found = activations.counterpart(name)
    if found is None:
        raise Missing(f"activation {name!r}")
    return found


def _policy(value: Any) -> str | None:
    name = value.get("config", {}).get("name") if isinstance(value, dict) else value
    if isinstance(value, dict) and value.get("class_name") != "DTypePolicy":
        raise Missing(f"dtype policy {value.get('class_name')}")
    if name is not None and name not in _POLICIES:
        raise Missing(f"dtype policy {name!r}")
    return name


def _object(value: dict[str, Any]) -> Any:
    """A serialized initializer, regularizer, constraint, layer or function."""
    module, name = value.get("module"), value.get("class_name")
    if name == "function" and module in ("keras.activations", "builtins"):
        return _activation(str(value["config"]))
    if name == "__tuple__":
        return tuple(_value("", item) for item in value["items"])
    kind = getattr(_HOLDERS.get(str(module)), str(name), None)
    if kind is None or name in _REFUSED:
        if "class_name" not in value:
            raise Missing("a user-defined Python function")
        raise Missing(f"{value.get('registered_name') or f'{module}.{name}'}")
    config = _arguments(kind, value["config"])
    return {"module": module, "class_name": name, "config": config, "registered_name": None}
