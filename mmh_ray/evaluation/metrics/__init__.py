"""Metrics of single images, of pairs of images and of cohorts."""

METRICS_VERSION = 2
"""Increase it when any result changes for the same files; evaluations with different versions are not compared."""
