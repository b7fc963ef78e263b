"""Weights in other libraries' names and layouts."""
