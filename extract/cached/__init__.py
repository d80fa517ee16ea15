"""Caches that are there already: find the one that answers a request, and check that its values are still right."""
