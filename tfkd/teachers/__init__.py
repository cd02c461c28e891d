"""Teachers of any kind as something to call, each run once a step and never trained.

forward.py  models, SavedModels, functions, several at once; a softmax at the end undone
precomputed.py   outputs that come with the data: of a cache, or from another machine
telling.py  logits or probabilities: told once, from the graph or by values
top_k.py    the best scores and one bucket for the rest
taps.py     a model run once, with the outputs of named layers
"""
