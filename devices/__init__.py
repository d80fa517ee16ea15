"""Devices that torch computes on: which one a name means, what it multiplies fast, its free memory, and its errors.

Extraction and probing share these facts. What each does with them, such as the size of a batch, stays with its room.
"""
