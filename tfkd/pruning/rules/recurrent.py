"""Channel rules of recurrent layers: their inputs may shrink, their hidden size is fixed."""

from __future__ import annotations

import tf_keras as keras

from tfkd.pruning.channel_ledger import Channels
from tfkd.pruning.rules.channel_call import ChannelCall
from tfkd.pruning.rules.registry import rule_for

layers = keras.layers
_KINDS = (layers.LSTM, layers.GRU, layers.SimpleRNN)


def _read(call: ChannelCall, cells: tuple[tuple[str, keras.layers.RNN], ...]) -> list[Channels]:
    if len(call.inputs) != 1:
        call.ledger.uncounted.append(call.path)
        return call.freeze_all(f"{call.path} takes initial states as inputs")
    atoms = call.mix(call.input, -1)
    for name, layer in cells:
        steps = call.input.shape[0 if layer.time_major else 1]
        call.weight(f"{name}.kernel", 0, atoms)  # (input width, gates · hidden size)
        call.cost(f"{name}.kernel", steps)
        call.cost(f"{name}.recurrent_kernel", steps)  # (hidden size, gates · hidden size)
    return [Channels(shape) for shape in call.shapes]


@rule_for(*_KINDS)
def _recurrent(call: ChannelCall) -> list[Channels]:
    return _read(call, (("cell", call.layer),))


@rule_for(layers.Bidirectional)
def _bidirectional(call: ChannelCall) -> list[Channels]:
    both = (call.layer.forward_layer, call.layer.backward_layer)
    if any(type(layer) not in _KINDS for layer in both):
        call.ledger.uncounted.append(call.path)
        return call.freeze_all(f"no rule for the layer inside {call.path}")
    names = ("forward_layer.cell", "backward_layer.cell")
    return _read(call, tuple(zip(names, both, strict=True)))
