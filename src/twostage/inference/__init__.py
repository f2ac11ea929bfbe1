"""From files to detections."""
