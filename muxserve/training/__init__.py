"""Training: distillation to every N, the stages of the paper, their data, and measuring a family."""
