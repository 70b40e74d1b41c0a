"""Kernels over pairs of a batch: Gram matrices, dependence, divergence, pairwise rate."""
