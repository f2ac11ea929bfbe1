"""`twostage data`: the data set itself."""
