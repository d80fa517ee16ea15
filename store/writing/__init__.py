"""Writing a cache: blocks that survive a kill, and claims by which several processes divide them."""
