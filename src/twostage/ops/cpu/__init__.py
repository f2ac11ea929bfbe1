"""Operators and layers for the CPU, and the memory that they work in."""
