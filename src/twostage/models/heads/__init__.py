"""What a region is and where exactly."""
