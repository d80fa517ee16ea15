"""Tokens to heads: layer sets, protocols, heads, the trainer, scores and results. It reads caches and never writes one."""
