"""Whether two detectors are the same: their detections one to one, the first stage that differs, and by what."""
