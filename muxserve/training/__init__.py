"""Training: data, a teacher, a student, multiplexed distillation and the measuring of a family."""
