"""Bottlenecks whose code predicts concepts."""
