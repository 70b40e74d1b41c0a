"""Data sets behind one name, and what they are cut and made of."""
