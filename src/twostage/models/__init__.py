"""The parts of a detector and their composition."""
