"""How good a detector is."""
