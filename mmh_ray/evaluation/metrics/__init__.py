"""Metrics of single images, of pairs of images and of cohorts."""

METRICS_VERSION = 2
"""Raise it when any value of an evaluation changes for the same files: evaluations of two versions are not compared."""
