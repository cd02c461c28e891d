"""Depth pruning: find residual blocks, choose layers to keep, cut blocks out."""
