"""Decides whether one model is better than another, and whether their evaluations can be compared."""
