"""Composition and checks of a recipe's configuration."""
