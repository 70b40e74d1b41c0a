"""How concept models are trained and what they are asked."""
