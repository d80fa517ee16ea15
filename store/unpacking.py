"""The bound on what packed bytes may unpack to."""

MAX_RATIO = 1100
"""Largest ratio of unpacked to packed bytes; deflate reaches 1032, the filters of HDF5 less."""
