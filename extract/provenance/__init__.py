"""Texts and records that say where a cache comes from."""
