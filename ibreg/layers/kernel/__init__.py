"""Bottlenecks whose penalty compares all pairs of a batch."""
