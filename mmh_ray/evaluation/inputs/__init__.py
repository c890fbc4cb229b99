"""Reads what is scored: scans, masks, label maps, truth and the outputs of methods."""
