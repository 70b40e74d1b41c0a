"""What a robustness run adds: adversarial training, distillation, models of other runs, and what it measures."""
