"""Computes intervals and differences over subjects, and summarises them for tables."""
