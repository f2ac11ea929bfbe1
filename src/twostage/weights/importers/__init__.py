"""Weights of other projects: one module for each, with its names, its orders of rows and channels, and its settings."""
