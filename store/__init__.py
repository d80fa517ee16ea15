"""Caches on disk: spec and key, inventory, block writer, memory-mapped reader, catalogue.

Nothing here knows torch or images. ``docs/format.md`` states the format.
"""
