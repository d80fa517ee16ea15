"""Training protocols: sweep, rules of batches, epochs and rates, and the TOML files that state them. No torch."""
