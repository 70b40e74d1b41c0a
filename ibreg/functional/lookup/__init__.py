"""Nearest neighbors in codebooks."""
