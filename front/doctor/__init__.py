"""Checks of the machine for `featcache doctor`."""

from featcache.moved import former_module

__getattr__ = former_module("featcache.doctor", "featcache.doctor.checks")
