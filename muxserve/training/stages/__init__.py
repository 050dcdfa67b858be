"""The training stages of the paper: a recipe in, a trained checkpoint out."""
