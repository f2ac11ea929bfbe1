"""Metrics of detections: VOC and COCO AP, proposal recall, confusion, and their plots."""
