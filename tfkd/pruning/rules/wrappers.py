"""Channel rule of `TimeDistributed`, which applies a layer to every step of a sequence."""

from __future__ import annotations

import tf_keras as keras

from tfkd.pruning.channel_ledger import Channels
from tfkd.pruning.rules.channel_call import ChannelCall
from tfkd.pruning.rules.registry import find, rule_for


class _Inner(ChannelCall):
    """A call of the wrapped layer, recorded under the wrapper's path.

    Attributes:
        times: number of calls by the wrapper (time steps); None if unknown.
    """

    times: int | None = None

    def weight(self, name, axis, atoms, zeroed=False, scored=False):
        super().weight(f"layer.{name}", axis, atoms, zeroed, scored)

    def filters(self, name, axis, count):
        return super().filters(f"layer.{name}", axis, count)

    def cost(self, name, positions):
        known = positions is not None and self.times is not None
        super().cost(f"layer.{name}", positions * self.times if known else None)

    def resize(self, key, atoms, index=None):
        super().resize(f"layer.config.{key}", atoms, index)


def _without_time(x: Channels) -> Channels:
    """The channels of a single step: drops the second axis (time)."""
    shape = (x.shape[0], *x.shape[2:])
    if x.axis is None or x.axis == 1:
        return Channels(shape)
    return x.reshaped(shape, x.axis - 1)


@rule_for(keras.layers.TimeDistributed)
def _time_distributed(call: ChannelCall) -> list[Channels]:
    """Applies the rule of the wrapped layer to a single step."""
    rule = find(call.layer.layer)
    if rule is None or len(call.inputs) != 1 or hasattr(call.layer.layer, "layers"):
        if call.layer.weights:
            call.ledger.uncounted.append(call.path)
        call.hide(call.layer.layer, f"in the model inside {call.path}, which is not analysed")
        return call.freeze_all(f"no rule for the layer inside {call.path}")
    if call.input.axis == 1:
        return call.freeze_all(f"{call.path} steps through the channels")
    step = _without_time(call.input)
    shapes = [(s[0], *s[2:]) for s in call.shapes]
    inner = _Inner(call.ledger, call.layer.layer, call.path, [step], {}, shapes)
    inner.times = call.input.shape[1]
    return [
        Channels(shape) if y.axis is None else y.reshaped(shape, y.axis + 1)
        for y, shape in zip(rule(inner), call.shapes, strict=True)
    ]
