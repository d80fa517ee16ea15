"""Checks of the machine for `featcache doctor`."""
