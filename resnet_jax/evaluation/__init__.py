"""Evaluation: `metrics` as sums and counts, `protocols` that score every image once."""
