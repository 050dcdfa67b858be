"""How the shipped families are made. Recipes run from a checkout; the wheel has none."""
