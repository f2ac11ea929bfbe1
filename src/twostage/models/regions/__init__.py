"""Which features a box sees."""
