"""The detectors before end-to-end training: R-CNN and SPPnet, trained stage by stage."""
