"""Intervals over subjects, and what a table shows of them."""
