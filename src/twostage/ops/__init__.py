"""Tensor primitives with no learning in them."""
