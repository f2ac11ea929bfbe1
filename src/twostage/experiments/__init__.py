"""The history of the R-CNN family on one data set: every detector with the same backbone, side by side."""
