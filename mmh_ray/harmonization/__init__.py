"""Harmonizing one scan, or what an archive's worker does with each; no Ray."""
