"""Channel propagation rules of the layers, one module per family, and `register_rule`."""

from tfkd.pruning.rules import (
    activations,
    applications,
    attention,
    kernels,
    merges,
    operations,
    recurrent,
    shapes,
    wrappers,
)
from tfkd.pruning.rules.channel_call import ChannelCall
from tfkd.pruning.rules.registry import find, register_rule

__all__ = [
    "ChannelCall",
    "activations",
    "applications",
    "attention",
    "find",
    "kernels",
    "merges",
    "operations",
    "recurrent",
    "register_rule",
    "shapes",
    "wrappers",
]
