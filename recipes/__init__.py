"""How the shipped families were made: run from a checkout, they are not in the wheel."""
