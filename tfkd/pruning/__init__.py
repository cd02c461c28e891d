"""Structured pruning of channels (filters) and of depth (residual blocks)."""

from tfkd.pruning import criteria
from tfkd.pruning.blocks.choice import LayerChoice
from tfkd.pruning.blocks.choose import choose_layers
from tfkd.pruning.blocks.cut import Block, cut_layers, find_blocks
from tfkd.pruning.channel_analysis import analyse
from tfkd.pruning.decay import AnnealedFilterDecay
from tfkd.pruning.graph import Graph, Group
from tfkd.pruning.masking import apply_selection
from tfkd.pruning.optimizers import shrink_optimizer
from tfkd.pruning.planning import Plan, plan, select
from tfkd.pruning.recalibrating import recalibrate
from tfkd.pruning.refusals import OutOfReach
from tfkd.pruning.rules import register_rule
from tfkd.pruning.selection import Selection
from tfkd.pruning.shrinking import shrink
from tfkd.pruning.taylor import Taylor

__all__ = [
    "AnnealedFilterDecay",
    "Block",
    "Graph",
    "Group",
    "LayerChoice",
    "OutOfReach",
    "Plan",
    "Selection",
    "Taylor",
    "analyse",
    "apply_selection",
    "choose_layers",
    "criteria",
    "cut_layers",
    "find_blocks",
    "plan",
    "recalibrate",
    "register_rule",
    "select",
    "shrink",
    "shrink_optimizer",
]
