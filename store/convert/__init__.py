"""Caches to single files that everybody reads, and arrays that people already have to caches.

Everything streams: at most `steps.STEP_BYTES` of features are in memory at a time.
"""
