"""Boxes, anchors, matching and decoding: what a detector needs around its network."""

__all__: list[str] = []
