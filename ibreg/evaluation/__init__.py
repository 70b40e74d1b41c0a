"""What to ask of a trained model: metrics and plots."""
