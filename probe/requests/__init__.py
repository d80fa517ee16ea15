"""Requests for a probe, and the head jobs that follow from a request and a cache. No torch."""
