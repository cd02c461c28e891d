"""Frozen teachers of any kind behind one interface, run at most once per step.

forward.py       models, SavedModels, functions and ensembles; logits behind a softmax
precomputed.py   outputs that come with the data, from a cache or another machine
layout.py        which tensors precomputed outputs consist of
output_kinds.py  whether outputs are logits or probabilities
class_scores.py  whether outputs hold class scores, or other numbers
top_k.py         the k highest scores and one bucket for all others
features.py      outputs of intermediate layers in one forward pass (hints)
"""
