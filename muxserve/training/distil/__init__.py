"""Multiplexed distillation: from a classifier and texts to a family."""
