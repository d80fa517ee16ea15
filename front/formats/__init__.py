"""File formats that `featcache import` reads with torch."""
