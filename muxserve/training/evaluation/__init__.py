"""Measuring a family: what is right, groupings, figures, and what ``family.json`` states of them."""
