"""A functional Keras model as a graph of calls: check, read, find layers, copy, rebuild, fold."""
