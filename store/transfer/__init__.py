"""Caches shared between teammates: pushed to a remote, pulled from it, read straight from it.

A remote is hostile until verified: names come from our own inventory and never from a listing, sizes from the manifest,
and no byte becomes visible before its SHA-256 is seen to be right.
"""
