"""Operators for accelerators (CUDA, MPS and others): fixed shapes, and the host never waits for the device."""
