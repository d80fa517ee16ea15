"""Labels that are attached to a cache later, from a table with the ids of its samples."""
