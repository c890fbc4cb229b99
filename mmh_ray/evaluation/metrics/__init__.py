"""Measures of single images, of pairs of images and of cohorts."""

MEASURES_VERSION = 1
"""Raise it when any figure of an evaluation changes for the same files: evaluations of two versions are not compared."""
