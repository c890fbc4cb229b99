"""Describes the style of a scan as a vector: backbones, tri-planar attention, training."""
