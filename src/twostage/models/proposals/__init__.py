"""Where objects might be: anchors and the region proposal network."""
