"""Data sets by name, their splits, and the subsets and streams made of them."""
