"""Compares harmonization methods: metrics, baselines, statistics, report and promotion."""
