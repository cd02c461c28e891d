"""What each kind of layer does with channels, one file a family."""

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
from tfkd.pruning.rules.call import Call
from tfkd.pruning.rules.registry import find, register_rule

__all__ = [
    "Call",
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
