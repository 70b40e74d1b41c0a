"""Information-bottleneck regularizers for PyTorch models."""
