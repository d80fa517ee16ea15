"""The public functions. The package `featcache` exports them; import them from there."""
