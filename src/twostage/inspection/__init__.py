"""Every stage of a prediction, what became of each box, and the pages that show it."""
