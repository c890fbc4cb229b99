"""Writes the results of an evaluation: report page, tables, sentences and pictures."""
