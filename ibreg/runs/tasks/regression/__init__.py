"""Training and evaluation of regressors."""
