"""Output to a terminal: messages, tables, progress."""
