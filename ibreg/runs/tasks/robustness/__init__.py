"""Robustness runs: adversarial training, distillation, adopted models, and measures under attack and corruption."""
