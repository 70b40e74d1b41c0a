"""Networks behind one name, pretrained or not, and what of them is trained."""
