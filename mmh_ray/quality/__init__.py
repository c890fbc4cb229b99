"""Checks every scan and its harmonized image, draws pictures of them, and writes the report of a run."""
