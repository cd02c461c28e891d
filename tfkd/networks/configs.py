"""Configs from which Keras builds layers and models again, with what Keras leaves out of them.

A config lacks what a layer has adapted to; it names custom classes and functions, which must
be in scope; and it does not say what a layer computes that was loaded from a SavedModel
without its class: Keras gives it a class of the right name, which calls functions in the
SavedModel. Where such a layer has no weights, a copy may call the same functions.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any

import numpy as np
import tf_keras as keras

from tfkd import checks
from tfkd.keras_internals import RevivedLayer, SafeModeScope
from tfkd.networks.layer_parts import output_form, parts

Config = dict[str, Any]
_APPLICATIONS = "tf_keras.src.applications."
# Arguments that a Lambda has in common with other layers.
_OF_LAYER = ("name", "trainable", "dtype", "batch_input_shape")
_Lookups = (keras.layers.StringLookup, keras.layers.IntegerLookup)


def complete_config(model: keras.Model) -> Config:
    """The config of a model with the state that its layers adapted, ready to be edited.

    Raises:
        ValueError: if there is no config, or it does not list the layers.
    """
    return check_lists_layers(learned_config(model), model)


def check_lists_layers(config: Config, model: keras.Model) -> Config:
    """Returns the config of a model; ValueError if it does not list the layers."""
    if "layers" not in config:
        raise ValueError(
            f"`model`: expected a model whose get_config lists its layers, received the "
            f"{type(model).__name__} {model.name!r}, which has a config of its own. Pass "
            "keras.Model(model.inputs, model.outputs), or nest that in its place."
        )
    return config


def learned_config(model: keras.Model) -> Config:
    """The config of a model with what its layers learned; ValueError if it can't be made."""
    try:
        return complete(model.get_config(), model)
    except (NotImplementedError, ValueError, TypeError) as error:
        raise _not_built_again(model, error) from error


def from_config(model: keras.Model, config: Config) -> keras.Model:
    """Builds a model of the class of `model` from a config, with its custom objects in scope.

    Raises:
        ValueError: if Keras can't build it.
    """
    try:
        return built_again(model, config)
    except Exception as error:
        raise _not_built_again(model, error) from error


def built_again(layer: Any, config: Config) -> Any:
    """A layer or model of the class of `layer` from a config, with its custom objects in scope."""
    with in_scope(layer):
        return type(layer).from_config(_with_lambdas_in_scope(config))


def _not_built_again(model: keras.Model, error: Exception) -> ValueError:
    return _fault_of("model", model) or ValueError(
        "`model`: expected a model that can be built again from its config, received "
        f"{model.name!r}, which can't ({checks.in_short(error)}). Give its custom layers "
        "get_config, use keras.utils.custom_object_scope for custom functions, and begin nested "
        "Sequential models with an Input."
    )


def check_configs(name: str, model: Any) -> None:
    """Raises ValueError for a layer whose `get_config` fails, with its name and what to add.

    Args:
        name: name of the argument, for the message.
        model: a model. Of a subclassed one, and of anything else, no layer is looked at.
    """
    fault = _fault_of(name, model)
    if fault is not None:
        raise fault


def _fault_of(name: str, model: Any) -> ValueError | None:
    """The error that `check_configs` raises, or None."""
    for layer in _leaves(model):
        try:
            layer.get_config()
        except Exception as error:  # the method may be a user's
            kind = type(layer).__name__
            return ValueError(
                f"`{name}`: expected layers that can be made again from their config, received "
                f"the {kind} {layer.name!r}, which has none ({checks.in_short(error)}). Give "
                f"{kind} a get_config that adds the arguments of its constructor to "
                "super().get_config(), and let the constructor pass **kwargs on."
            )
    return None


def _leaves(model: Any) -> Iterator[keras.layers.Layer]:
    """The layers that the config of a functional or Sequential model lists, also of nested ones."""
    if isinstance(model, keras.Sequential) or output_form(model) is not None:
        for layer in model.layers:
            inner = list(_leaves(layer))
            yield from inner or [layer]


def complete(
    config: dict[str, Any], layer: keras.layers.Layer, fixed: bool = False
) -> dict[str, Any]:
    """Adds the adapted state to a config that a copy needs before its first call.

    The output width of a `Discretization` depends on its boundaries, which Keras omits.
    `layer_state.copy` makes the new layer adaptable again.

    Args:
        config: result of `layer.get_config()`; changed in place.
        layer: a layer or model.
        fixed: also add vocabularies, so that the config holds all of the state, for
            another process too. Boundaries and vocabularies of the new layer are then
            constructor arguments, as if the user had given them.

    Returns:
        The config.
    """
    parts = config.get("layers")
    if isinstance(parts, (list, tuple)) and isinstance(layer, keras.Model):
        # Sequential hides its InputLayer.
        layers = keras.Model.layers.fget(layer)
        known = {child.name: child for child in layers}
        for number, part in enumerate(parts):
            own = layers[number].name if len(parts) == len(layers) else None
            name = part["config"].get("name", own)
            if name in known:
                _put_name(part["config"], known[name])
                complete(part["config"], known[name], fixed)
    elif isinstance(config.get("layer"), dict) and hasattr(layer, "layer"):
        complete(config["layer"]["config"], layer.layer, fixed)
    elif isinstance(layer, keras.layers.Discretization):
        if layer.input_bin_boundaries is None and layer.bin_boundaries:
            config.update(bin_boundaries=[float(b) for b in layer.bin_boundaries], num_bins=None)
    elif isinstance(layer, keras.layers.Rescaling):
        # Keras serializes arrays into a model's config but can't deserialize them.
        for key in ("scale", "offset"):
            config[key] = np.asarray(getattr(layer, key)).tolist()
    elif isinstance(layer, (*_Lookups, keras.layers.TextVectorization)):
        words = getattr(layer, "_lookup_layer", layer)
        # The vocabulary file may no longer exist.
        if fixed or isinstance(words.input_vocabulary, str):
            _put_words(config, words)
    return config


def _put_name(config: dict[str, Any], layer: Any) -> None:
    """Adds the name to the config of a layer without a `get_config`: copies match by name."""
    if "name" not in config:
        takes = inspect.signature(type(layer).__init__).parameters.values()
        if any(one.name == "name" or one.kind is one.VAR_KEYWORD for one in takes):
            config["name"] = layer.name


def has_adaptable_layers(model: keras.Model) -> bool:
    """True for a model with layers whose config `complete` extends by adapted state."""
    kinds = (keras.layers.Discretization, keras.layers.TextVectorization, *_Lookups)
    return any(isinstance(part, kinds) for part in model._flatten_layers())


def _put_words(config: dict[str, Any], layer: Any) -> None:
    if not int(layer.lookup_table.size()):
        return  # The layer was never adapted.
    words = layer.get_vocabulary()
    config["vocabulary"] = [w.item() if isinstance(w, np.generic) else w for w in words]
    if layer.output_mode == "tf_idf":
        config["idf_weights"] = layer.idf_weights.numpy()[: len(words)].tolist()


@keras.saving.register_keras_serializable(package="tfkd")
class StoredFunction(keras.layers.Layer):
    """A copy of a layer without weights: calls the layer that it is a copy of.

    A SavedModel can hold it; a `.keras` file can't, for it holds no functions.

    Args:
        source: the layer, as Keras loaded it.
        options: of `keras.layers.Layer`.
    """

    def __init__(self, source: Any, **options: Any):
        super().__init__(**options)
        self.source = source
        self.supports_masking = source.supports_masking

    def call(self, inputs: Any, *args: Any) -> Any:
        """What the layer computes; `training` reaches it by Keras's own context."""
        return self.source(inputs, *args)

    def get_config(self) -> dict[str, Any]:
        """What a copy is found again by: its name."""
        return {"name": self.name, "trainable": self.trainable, "dtype": self.dtype}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> StoredFunction:
        """Refused: a config holds no function."""
        raise ValueError(
            f"{config['name']!r} was loaded from a SavedModel without its class, and a config or "
            ".keras file does not hold what it computes. Save the model as a SavedModel: "
            "model.save(folder)."
        )


class _Source:
    """Stands for a class in a scope of custom objects: copies the layer of a config's name."""

    def __init__(self) -> None:
        self.layers: dict[str, Any] = {}

    def from_config(self, config: dict[str, Any]) -> StoredFunction:
        """A copy of the layer that bears this name."""
        return copied(self.layers[config["name"]], config["name"])


def is_stored(layer: Any) -> bool:
    """True for a layer that was loaded without its class, and for a copy of one.

    Raises:
        ValueError: if it has weights, which no copy can have of its own.
    """
    if not isinstance(layer, (RevivedLayer, StoredFunction)):
        return False
    if layer.weights:
        kind = type(layer).__name__
        raise ValueError(
            "`model`: expected layers that can be built again from their config, received "
            f"{layer.name!r}, a {kind} with weights that was loaded from a SavedModel without its "
            "class. Load it with the class, whose get_config holds all arguments of its "
            f"constructor: keras.models.load_model(path, custom_objects={{{kind!r}: {kind}}})."
        )
    return True


def copied(layer: Any, name: str) -> StoredFunction:
    """A copy of a layer that `is_stored`."""
    source = layer.source if isinstance(layer, StoredFunction) else layer
    return StoredFunction(source, name=name, dtype=layer.dtype, trainable=layer.trainable)


class _Lambdas:
    """Stands for `Lambda` in a scope of custom objects: copies the layer of a config's name."""

    def __init__(self, layers: list[Any]):
        self.layers = layers

    def from_config(self, config: dict[str, Any]) -> Any:
        """A copy of the layer that bears this name; from its code if several do."""
        named = [layer for layer in self.layers if layer.name == config["name"]]
        if len(named) != 1:
            return keras.layers.Lambda.from_config(config)
        return copy_lambda(*named, **{key: config[key] for key in _OF_LAYER if key in config})


def _with_lambdas_in_scope(config: Any) -> Any:
    """A config for which Keras looks for `Lambda` in the scope, where `_Lambdas` may be."""
    if isinstance(config, dict):
        made = {key: _with_lambdas_in_scope(item) for key, item in config.items()}
        return {**made, "registered_name": "Lambda"} if made.get("class_name") == "Lambda" else made
    if type(config) in (list, tuple):
        return type(config)(map(_with_lambdas_in_scope, config))
    return config


def copy_lambda(layer: Any, **options: Any) -> Any:
    """A Lambda with the same function object: serialized code loses what it refers to."""
    same = {key: getattr(layer, key) for key in ("mask", "arguments")}
    return keras.layers.Lambda(layer.function, layer._output_shape, **same, **options)


@contextlib.contextmanager
def in_scope(layer: Any) -> Iterator[None]:
    """Context in which Keras can build a layer or model again from its config.

    In scope are the custom classes and functions that it holds, such as activations and
    regularizers, although they are not registered, and what copies its stored layers.

    Raises:
        ValueError: if a stored layer has weights, or two of one name are in different nested
            models.
    """
    every = (*parts(layer), layer)
    stored: dict[str, _Source] = {}
    kinds = (RevivedLayer, StoredFunction)
    # What stored layers are made of is not built again, and the layer itself by its class.
    inside = {id(part) for one in every if isinstance(one, kinds) for part in parts(one)}
    inside.add(id(layer))
    for part in every:
        if id(part) not in inside and is_stored(part):
            name = keras.utils.get_registered_name(type(part))
            same = stored.setdefault(name, _Source()).layers
            if same.setdefault(part.name, part) is not part:
                raise ValueError(
                    "`model`: expected layers of different names, received two named "
                    f"{part.name!r} that were loaded from a SavedModel without their class. Build "
                    "the model with other names, or load it with custom_objects."
                )
    # An object that the user registered takes precedence over one that a layer holds.
    objects = {**held_objects(layer), **keras.utils.get_custom_objects(), **stored}
    objects["Lambda"] = _Lambdas([one for one in every if type(one) is keras.layers.Lambda])
    # Safe mode guards against code from files; a Lambda's code is in this process already.
    with keras.utils.custom_object_scope(objects), SafeModeScope(safe_mode=False):
        yield


def held_objects(layer: Any) -> dict[str, Any]:
    """The custom classes and functions that a layer or model holds, and its own, by name."""
    found: dict[str, Any] = {}
    for part in (*parts(layer), layer):
        for value in (*vars(part).values(), part):
            item = value if inspect.isfunction(value) else type(value)
            module = f"{getattr(item, '__module__', '')}."
            known = module.startswith(("tf_keras.", "tensorflow."))
            # Keras does not register the layers that only its applications use. Its other
            # layers must not be here: for those in the scope it also creates the weights,
            # outside of the layers' name scopes.
            hidden = value is part and module.startswith(_APPLICATIONS)
            custom = inspect.isfunction(item) or hasattr(item, "get_config")
            if custom and (hidden or not known):
                found[item.__name__] = item
    return found
