"""Experiments over the R-CNN family: every detector with one backbone side by side, and the papers' ablations."""
