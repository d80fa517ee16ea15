"""Checking a cache against its manifest, and dropping what is damaged."""
