"""The weights file format and importers."""
