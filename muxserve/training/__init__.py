"""Training: distillation to every N, the paper's stages, their data, and measuring a family."""
