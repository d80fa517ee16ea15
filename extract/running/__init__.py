"""The run itself: blocks of images through the backbone and into the cache."""
