"""The arrays, the place and the batch size of a new cache, and the estimate of a dry run."""
