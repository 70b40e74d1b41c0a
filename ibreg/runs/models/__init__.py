"""Networks by name, pretrained or not, with their normalization and their features."""
