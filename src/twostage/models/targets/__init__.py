"""What each anchor and each region should learn."""
