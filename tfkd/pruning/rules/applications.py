"""Channel rules of the custom layers in `tf_keras.applications` (ConvNeXt, InceptionResNet)."""

from __future__ import annotations

from tfkd.keras_internals import CustomScaleLayer, LayerScale, StochasticDepth
from tfkd.pruning.channel_ledger import Channels
from tfkd.pruning.rules.channel_call import ChannelCall
from tfkd.pruning.rules.merges import combine
from tfkd.pruning.rules.registry import rule_for


@rule_for(LayerScale, tracked=True)
def _layer_scale(call: ChannelCall) -> list[Channels]:
    x = call.input
    call.weight("gamma", 0, call.at(x, -1), zeroed=True)
    call.resize("projection_dim", x.atoms)
    return [call.same(x)[0].with_zero(True)]


@rule_for(StochasticDepth)
def _stochastic_depth(call: ChannelCall) -> list[Channels]:
    return call.same(call.input)


@rule_for(CustomScaleLayer)
def _scaled_sum(call: ChannelCall) -> list[Channels]:
    # inputs[0] + inputs[1] · scale
    return combine(call, call.inputs)
