"""Fitting of heads: whole sweeps at once, by formula or by the exact solver, within a memory budget."""
