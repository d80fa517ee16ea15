"""`featcache verify --recompute`: rows of a cache run through its backbone again. Importing this package is cheap.

`request` says which rows, `run` is the function, `inputs` finds model and dataset again and holds them to the spec, `outcome` is what comes of it.
"""
