"""Volumes, intensities, grids and phantoms: numpy in, numpy out; knows neither BIDS nor Ray."""
