"""Detectors as their projects document them, in torch and torchvision's operators alone: oracles for imported weights.

They read a state dict by the project's own names, one image at a time, every step written out. Nothing of twostage's
models is used here.
"""
