"""The training loop and all it writes."""
