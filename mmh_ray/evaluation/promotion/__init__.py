"""Whether one model's evaluation is better than another's, and whether the two can be compared."""
