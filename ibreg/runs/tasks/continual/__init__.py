"""Learning a stream of classes: what learns, how, and what it is worth."""
