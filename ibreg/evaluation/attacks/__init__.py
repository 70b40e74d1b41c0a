"""Adversarial attacks that see the randomness of stochastic layers."""
