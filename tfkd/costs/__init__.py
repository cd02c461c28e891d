"""What each layer of a model costs: followed on one example, counted by rules."""
