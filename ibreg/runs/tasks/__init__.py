"""The part of each recipe that the others do not share."""
