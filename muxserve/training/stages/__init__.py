"""The three stages of the paper, from a recipe to a trained checkpoint."""
