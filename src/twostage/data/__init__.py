"""From files to batches: readers, checks, augmentation, generated scenes."""
