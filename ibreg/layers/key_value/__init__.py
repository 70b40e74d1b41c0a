"""The discrete key-value bottleneck and its codebooks."""
