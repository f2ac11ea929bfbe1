"""Detectors as files for other runtimes, each with a certificate that it finds the same."""
