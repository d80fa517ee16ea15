"""The public functions. The package `featcache` exports them; import them from there."""

from featcache.moved import former_module

__getattr__ = former_module("featcache.api", "featcache")
