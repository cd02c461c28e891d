"""Graph traversal of a Keras 3 model, which builds the tf_keras model call by call.

A call without a counterpart is recorded and replaced by a placeholder input, so that the
traversal continues and finds all unsupported parts at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from tfkd.interop import configs, operations
from tfkd.interop.configs import Missing
from tfkd.interop.keras3_call import Keras3Call
from tfkd.keras_internals import KerasTensor
from tfkd.networks.call_graph import maker_of, nodes_of

# State of a stateful recurrent layer; tf_keras does not count it as a weight.
_NO_WEIGHTS = frozenset({"rnn_state", "seed_generator_state"})
_LISTS_WITH_MASKS = (keras.layers.Attention, keras.layers.AdditiveAttention)


class Converter:
    """Converts a model and the layers and models in it, each of them once.

    Args:
        keras_3: the module of Keras 3.
        custom: Keras 3 layer class → function that creates its counterpart.

    Attributes:
        missing: one line for each part without a counterpart.
    """

    def __init__(self, keras_3: ModuleType, custom: Mapping[type, Callable[[Any], Any]]) -> None:
        self.keras_3 = keras_3
        self.custom = custom
        self.missing: list[str] = []
        self._made: dict[int, Any] = {}
        self._pairs: list[tuple[Any, Any]] = []

    # --- layers ------------------------------------------------------------------

    def model(self, source: Any, prefix: str = "") -> keras.Model | None:
        """The counterpart of a model; None if a part of it has none."""
        before = len(self.missing)
        kind = type(source).call
        if source.built and kind is self.keras_3.Sequential.call and source._functional:
            made = self._sequential(source, prefix)
        elif any(vars(c).get("call") is kind for c in _functional_classes(source)):
            made = _Walk(self, source, prefix).model
        else:
            built = "is not built" if isinstance(source, self.keras_3.Sequential) else ""
            what = built or f"is a subclassed model ({type(source).__name__})"
            self.missing.append(f"{prefix}{source.name}: {what}")
            return None
        if len(self.missing) > before:
            return None
        if not source.trainable:
            made.trainable = False
        return made

    def _sequential(self, source: Any, prefix: str) -> Any:
        layers = [self.layer(layer, prefix) for layer in source.layers]
        if any(layer is None for layer in layers):
            return None
        made = keras.Sequential([self.input(source.inputs[0])], name=source.name)
        for layer, old in zip(layers, source.layers, strict=True):
            try:
                made.add(layer)
            except (ValueError, TypeError) as error:
                self.missing.append(f"{prefix}{old.name}: {error}")
                return None
        return made

    @staticmethod
    def input(tensor: Any) -> KerasTensor:
        """The counterpart of an input."""
        layer = maker_of(tensor)
        return keras.Input(
            batch_shape=tensor.shape,
            dtype=tensor.dtype,
            name=layer.name,
            sparse=bool(getattr(layer, "sparse", False)),
        )

    def layer(self, source: Any, prefix: str = "") -> keras.layers.Layer | None:
        """The counterpart of a layer or nested model, the same object at each call."""
        if id(source) not in self._made:
            made = None
            try:
                made = self._new(source, prefix)
            except Missing as error:
                self.missing += [f"{prefix}{source.name}: {what}" for what in error.what]
            except (ValueError, TypeError) as error:
                self.missing.append(f"{prefix}{source.name}: tf_keras refuses it: {error}")
            self._made[id(source)] = made
        return self._made[id(source)]

    def _new(self, source: Any, prefix: str) -> Any:
        for kind, function in self.custom.items():
            if type(source) is kind:
                made = function(source)
                if not isinstance(made, keras.layers.Layer):
                    raise Missing(f"custom_layers[{kind.__name__}] returned no tf_keras layer")
                self._pairs.append((source, made))
                return made
        if isinstance(source, self.keras_3.Model):
            return self.model(source, f"{prefix}{source.name}/")
        if type(source) is self.keras_3.layers.TimeDistributed:
            inner = self.layer(source.layer, f"{prefix}{source.name}/")
            policy = source.dtype_policy.name
            return inner and keras.layers.TimeDistributed(inner, name=source.name, dtype=policy)
        made = configs.new_layer(source)
        self._pairs.append((source, made))
        return made

    # --- weights -----------------------------------------------------------------

    def copy_weights(self) -> None:
        """Copies the weights of all layers.

        Raises:
            ValueError: if weights have different shapes; the message lists the layers.
        """
        wrong = []
        for source, made in self._pairs:
            variables = _ordered([v for v in source.weights if v.name not in _NO_WEIGHTS], made)
            values = [np.asarray(self.keras_3.ops.convert_to_numpy(v)) for v in variables]
            shapes = [value.shape for value in values], [tuple(w.shape) for w in made.weights]
            if shapes[0] != shapes[1]:
                wrong.append(f"- {source.name}: {shapes[0]}, in tf_keras {shapes[1]}")
                continue
            made.set_weights(values)
        if wrong:
            raise ValueError(
                "`model`: expected layers whose weights have the same shapes in both, received\n"
                + "\n".join(wrong)
            )


def _ordered(variables: list[Any], made: Any) -> list[Any]:
    """A layer's variables in the order of tf_keras, if their names are unambiguous."""
    names = [weight.name.rpartition("/")[2].split(":")[0] for weight in made.weights]
    by_name = {variable.name: variable for variable in variables}
    if len(by_name) == len(variables) and set(names) == set(by_name):
        return [by_name[name] for name in names]
    return variables


def _functional_classes(source: Any) -> list[type]:
    return [
        kind
        for kind in type(source).__mro__
        if kind.__name__ == "Functional" and kind.__module__.startswith("keras.src.")
    ]


class _Walk:
    """The traversal of one functional model.

    Attributes:
        model: the counterpart; None if a part of it has none.
    """

    def __init__(self, converter: Converter, source: Any, prefix: str) -> None:
        self._converter = converter
        self._prefix = prefix
        self._tree = converter.keras_3.tree
        self._tensor_type = converter.keras_3.KerasTensor
        self._tensors: dict[int, Any] = {id(t): converter.input(t) for t in source.inputs}
        self._named: set[str] = set()
        before = len(converter.missing)
        for node in self._needed(source):
            self._call(node)
        self.model = None
        if len(converter.missing) == before:
            inputs, outputs = map(self._known, (source._inputs_struct, source._outputs_struct))
            self.model = keras.Model(inputs, outputs, name=source.name)

    def _known(self, structure: Any) -> Any:
        return self._tree.map_structure(lambda t: self._tensors[id(t)], structure)

    def _needed(self, source: Any) -> list[Any]:
        """The calls that the outputs depend on, in order, without those of implicit masks."""
        wanted = {id(tensor) for tensor in source.outputs}
        found = []
        for node in reversed(nodes_of(source)):
            if any(id(tensor) in wanted for tensor in node.outputs):
                read = self._tree.flatten(self._arguments(node))
                wanted |= {id(value) for value in read if isinstance(value, self._tensor_type)}
                if not all(id(tensor) in self._tensors for tensor in node.outputs):
                    found.append(node)
        return found[::-1]

    def _arguments(self, node: Any) -> tuple[Any, dict[str, Any]]:
        """The explicit arguments of a call, without those that Keras fills in.

        These are `training`, which is overridden when a model runs, and masks attached to
        the tensors, which tf_keras propagates in the same way.
        """
        args, kwargs = node.arguments.args, node.arguments.kwargs
        if not isinstance(node.operation, self._converter.keras_3.Layer):
            return args, kwargs
        own = {id(getattr(t, "_keras_mask", None)) for t in self._tree.flatten((args, kwargs))}
        implicit = {
            key
            for key, value in kwargs.items()
            if value is None
            or key == "training"
            or (key.endswith("mask") and all(id(m) in own for m in self._tree.flatten(value)))
        }
        return args, {key: value for key, value in kwargs.items() if key not in implicit}

    def _value(self, value: Any) -> Any:
        """Converts an argument: symbolic tensors to tf_keras tensors, others to constants."""
        if isinstance(value, self._tensor_type):
            return self._tensors[id(value)]
        if isinstance(value, self._converter.keras_3.Variable):
            raise Missing("reads a variable directly, outside of a layer")
        if hasattr(value, "shape") and hasattr(value, "dtype"):
            return np.asarray(self._converter.keras_3.ops.convert_to_numpy(value))
        return value

    def _call(self, node: Any) -> None:
        results = self._results(node)
        if results is None or len(results) != len(node.outputs):
            specs = [tf.TensorSpec(tensor.shape, tensor.dtype) for tensor in node.outputs]
            results = [keras.Input(type_spec=spec) for spec in specs]
        for tensor, result in zip(node.outputs, results, strict=True):
            self._tensors[id(tensor)] = result

    def _results(self, node: Any) -> list[Any] | None:
        source, converter = node.operation, self._converter
        is_layer = isinstance(source, converter.keras_3.Layer)
        layer = converter.layer(source, self._prefix) if is_layer else None
        if is_layer and layer is None:
            return None  # `layer` has recorded what is missing.
        try:
            args, kwargs = self._tree.map_structure(self._value, self._arguments(node))
            if isinstance(layer, _LISTS_WITH_MASKS) and node.arguments.kwargs.get("mask") is None:
                # Keras 3 passes masks on only if all tensors have one.
                args = tf.nest.map_structure(operations.unmasked, args)
            call = layer or self._operation(node)
            return tf.nest.flatten(call(*args, **kwargs))
        except Missing as error:
            kind = "" if is_layer else f"keras.ops {type(source).__name__}: "
            converter.missing.append(f"{self._prefix}{source.name}: {kind}{error}")
        except (ValueError, TypeError) as error:
            text = f"tf_keras refuses the call: {error}"
            converter.missing.append(f"{self._prefix}{source.name}: {text}")
        return None

    def _operation(self, node: Any) -> Callable[..., Any]:
        """A function that builds and calls the counterpart of an operation."""
        source, first = node.operation, node.outputs[0]
        name = None if source.name in self._named else source.name
        self._named.add(source.name)

        def call(*args: Any, **kwargs: Any) -> Any:
            made = Keras3Call(source, args, kwargs, tuple(first.shape), str(first.dtype), name)
            return operations.translate(made)

        return call
