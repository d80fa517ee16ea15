"""Heads while they are fitted: whole sweeps at once, by formula or by competition, within a memory budget."""
