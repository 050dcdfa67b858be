"""Measuring a family: examples, groupings, figures, and what ``family.json`` states of them."""
