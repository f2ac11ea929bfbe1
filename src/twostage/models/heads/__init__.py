"""Heads: classes, boxes and masks of regions or anchors, and post-processing."""
