"""Volumes, grids, intensities, brain masks, registration and the way back to the scan: numpy in, numpy out.

Knows neither BIDS nor Ray.
"""
