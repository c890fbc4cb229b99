"""Simple methods to compare ours with."""
