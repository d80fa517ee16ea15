"""Output to a terminal: messages, tables, progress."""

from featcache.moved import former_module

__getattr__ = former_module("featcache.terminal", "featcache.terminal.streams")
