"""Registry of channel rules by layer class, and `register_rule` for custom layers."""

from __future__ import annotations

from collections.abc import Callable

import tf_keras as keras

from tfkd import checks
from tfkd.pruning.channel_ledger import Channels
from tfkd.pruning.rules.channel_call import ChannelCall

Rule = Callable[[ChannelCall], "list[Channels]"]
_RULES: dict[type, Rule] = {}


def register_rule(layer_class: type, rule: Rule) -> None:
    """Registers how a custom layer propagates channels.

    The rule is called for every call of the layer. It records which axis of which weight
    belongs to which channels, and returns the channels of the outputs. Channels that reach
    a layer without a rule are frozen. `shrink` detects a wrong rule when it compares the
    two models.

    Args:
        layer_class: the class. The rule does **not** apply to subclasses, which may
            compute something else. A later rule replaces an earlier one.
        rule: `rule(call)` → list of `Channels`, one per output, where `call` is a
            `tfkd.pruning.rules.ChannelCall`. An elementwise layer with f(0) = 0 returns
            `call.same(call.input)`.

    Raises:
        TypeError: if the class is not a Keras layer or the rule is not callable.

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


def find(layer: keras.layers.Layer) -> Rule | None:
    """Returns the rule of the layer's exact class, or None."""
    return _RULES.get(type(layer))


def rule_for(*classes: type, tracked: bool = False) -> Callable[[Rule], Rule]:
    """Decorator that registers a rule for several classes.

    A `tracked` rule applies only if the channels of the first input are tracked; otherwise
    those of the output are not.
    """

    def decorate(rule: Rule) -> Rule:
        def guarded(call: ChannelCall) -> list[Channels]:
            return [Channels(call.shape)] if call.input.axis is None else rule(call)

        for layer_class in classes:
            register_rule(layer_class, guarded if tracked else rule)
        return rule

    return decorate
