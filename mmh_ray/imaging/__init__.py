"""Volumes, grids, intensities, brain masks, registration, and mapping results back to the scan: numpy in, numpy out.

Depends on neither BIDS nor Ray.
"""
