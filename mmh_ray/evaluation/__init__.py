"""Metrics, baselines and figures that compare methods honestly."""
