"""From a model and data, each given by name, to a file: sources, recipes and runs."""
