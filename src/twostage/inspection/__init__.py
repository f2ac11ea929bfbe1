"""Reports on data sets and predictions for people to read."""
