"""Layer class → rule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tf_keras as keras

from tfkd import checks
from tfkd.pruning.channel_ledger import Channels
from tfkd.pruning.rules.channel_call import ChannelCall

Rule = Callable[[ChannelCall], "list[Channels]"]
_RULES: dict[type, Rule] = {}


def register_rule(layer_class: type, rule: Rule) -> None:
    """Teaches pruning what a custom layer does with channels.

    The rule is told of every call of the layer. It says which axis of which
    weight belongs to which channels, and returns the channels of the outputs; a
    layer without a rule keeps all channels that reach it. A wrong rule is found
    when `shrink` compares the two models.

    Args:
        layer_class: the class. Its subclasses do **not** follow the rule: they
            may compute something else. A later rule replaces an earlier one.
        rule: `rule(call)` → list of `Channels`, one for each output; `call` is
            a `tfkd.pruning.rules.ChannelCall`. `call.same(call.input)` is the answer of
            an elementwise layer with f(0) = 0.

    Raises:
        TypeError: if the class is not a Keras layer or the rule not callable.

    Example:
        >>> import tf_keras as keras
        >>> from tfkd import pruning
        >>> class Scale(keras.layers.Layer):
        ...     def build(self, shape):
        ...         self.factor = self.add_weight(name="factor", shape=shape[-1:])
        ...     def call(self, x):
        ...         return x * self.factor
        >>> def rule(call):
        ...     call.weight("factor", 0, call.at(call.input, -1), zeroed=True)
        ...     return call.same(call.input)
        >>> pruning.register_rule(Scale, rule)
    """
    if not isinstance(layer_class, type) or not issubclass(layer_class, keras.layers.Layer):
        raise checks.type_error("layer_class", "a subclass of tf_keras.layers.Layer", layer_class)
    _RULES[layer_class] = checks.function("rule", rule)


def find(layer: Any) -> Rule | None:
    """Returns the rule of the layer's own class, or None."""
    return _RULES.get(type(layer))


def rule_for(*classes: type) -> Callable[[Rule], Rule]:
    """Decorator: registers a rule for several classes."""

    def decorate(rule: Rule) -> Rule:
        for layer_class in classes:
            register_rule(layer_class, rule)
        return rule

    return decorate
