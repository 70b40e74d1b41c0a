"""Summaries, tables and comparisons of runs."""
