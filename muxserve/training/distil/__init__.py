"""Multiplexed distillation: a classifier and texts in, a family of one set of weights out."""
