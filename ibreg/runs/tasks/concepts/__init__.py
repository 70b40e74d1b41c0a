"""Training and examination of concept models."""
