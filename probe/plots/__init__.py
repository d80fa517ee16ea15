"""Plots of results: one file per plot, one style. Each takes numbers and returns a figure; see `save` for files. No torch."""
