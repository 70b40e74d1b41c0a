"""Metrics of, interventions on and leakage of concept bottlenecks."""
